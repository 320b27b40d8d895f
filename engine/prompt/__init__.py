"""What the model is shown, and the cache that follows it."""
