"""Where a token may leave the layers, where a completion is given up, and how both are learnt."""
