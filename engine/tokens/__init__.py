"""Text to token ids, and again only around an edit."""
