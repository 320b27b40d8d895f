"""The network being trained, its loss and its schedule."""
