"""Rotary embedding: keys turned to new positions, rows rotated and stored."""
