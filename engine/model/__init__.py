"""One decoder for every supported family, over a cache of keys and values."""
