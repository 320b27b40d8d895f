"""Where a token leaves the layers, which of them it is spared, and when to give up."""
