"""The recipe of the embedded model: from released packages to a GGUF file. README.md has the steps.

Run its scripts from the repository's root: `python -m training.prepare --help`.
"""
