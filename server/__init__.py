"""The language server and the command line: no torch here."""
