"""On a GPU: weights times a few rows, or many."""
