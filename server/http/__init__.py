"""OpenAI's and llama.cpp's HTTP interfaces to the engine, for tools that speak no LSP."""
