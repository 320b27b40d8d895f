"""`keyturn replay`: a trace of edits and completions, measured."""
