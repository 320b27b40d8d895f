"""From released packages to shards of samples."""
