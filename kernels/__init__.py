"""Numeric kernels and their torch references."""
