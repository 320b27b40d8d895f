"""The engine: a language model whose KV cache follows the text."""
