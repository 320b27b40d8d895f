"""Weights of 2 to 8 bits as planes of bits."""
