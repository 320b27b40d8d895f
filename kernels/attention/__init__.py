"""Attention over slots in any order, and what a row leaned on."""
