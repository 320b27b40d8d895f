"""What server and engine host agree on: messages, address, errors, configuration; no torch."""
