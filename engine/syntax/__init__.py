"""What the syntax of a document says about a place in it; no torch here."""
