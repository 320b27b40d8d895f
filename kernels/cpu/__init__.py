"""On the CPU: products, and all layers over a few rows in one call of a C library."""
