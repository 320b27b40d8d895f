"""What stands between a layer's products: norms, gates, sums."""
