"""How weights lie in memory, and what multiplies by them looks like."""
