"""Languages by their LSP identifier: which file names mean which, and which has which grammar."""

from __future__ import annotations

import functools
import importlib
from pathlib import PurePath

import tree_sitter

PLAIN_TEXT = "plaintext"

# Languages that a document may be in, by the end of its name; of all others only the client knows.
_EXTENSIONS = {
    "python": ".py .pyi .pyw",
    "javascript": ".js .mjs .cjs .es6",
    "javascriptreact": ".jsx",
    "typescript": ".ts .mts .cts",
    "typescriptreact": ".tsx",
    "bat": ".bat .cmd",
    "c": ".c",
    "clojure": ".clj .cljs .edn",
    "cpp": ".h .hpp .hh .cc .cpp .cxx",
    "csharp": ".cs",
    "css": ".css",
    "csv": ".csv",
    "dart": ".dart",
    "elixir": ".ex .exs",
    "go": ".go",
    "haskell": ".hs",
    "html": ".html .htm .xhtml",
    "ini": ".ini .cfg .conf",
    "java": ".java",
    "json": ".json .ipynb",
    "jsonc": ".jsonc",
    "julia": ".jl",
    "kotlin": ".kt .kts",
    "latex": ".tex",
    "less": ".less",
    "lua": ".lua",
    "makefile": ".mk",
    "markdown": ".md .markdown",
    "perl": ".pl .pm",
    "php": ".php",
    "powershell": ".ps1",
    "r": ".r",
    "restructuredtext": ".rst",
    "ruby": ".rb",
    "rust": ".rs",
    "scala": ".scala",
    "scss": ".scss",
    "shellscript": ".sh .bash .zsh",
    "sql": ".sql",
    "svelte": ".svelte",
    "swift": ".swift",
    "toml": ".toml",
    "vue": ".vue",
    "xml": ".xml .svg",
    "yaml": ".yaml .yml",
    PLAIN_TEXT: ".txt .log",
}
_BY_EXTENSION = {
    extension: language for language, names in _EXTENSIONS.items() for extension in names.split()
}
# Names that some clients have for the same language.
_ALIASES = {
    "py": "python",
    "js": "javascript",
    "jsx": "javascriptreact",
    "javascript.jsx": "javascriptreact",
    "ts": "typescript",
    "tsx": "typescriptreact",
    "typescript.tsx": "typescriptreact",
    "sh": "shellscript",
    "bash": "shellscript",
    "zsh": "shellscript",
    "text": PLAIN_TEXT,
}
# By language: the package of its grammar, and the function there that returns it. JSX belongs to
# the grammar of JavaScript.
_GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "javascriptreact": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "typescriptreact": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "java": ("tree_sitter_java", "language"),
}


@functools.lru_cache(maxsize=1024)  # asked several times for each request
def language_of(language_id: str, path: str) -> str:
    """Return the language of a document as an LSP identifier.

    Args:
        language_id: what the client calls it; "" if it does not say. It decides.
        path: the document's file name or URI, whose extension decides otherwise.

    Returns:
        The identifier, in small letters; "plaintext" when neither tells.
    """
    named = language_id.strip().lower()
    if named:
        return _ALIASES.get(named, named)
    return _BY_EXTENSION.get(PurePath(path).suffix.lower(), PLAIN_TEXT)


def has_grammar(language: str | None) -> bool:
    """Whether documents of this language can be parsed here."""
    return language in _GRAMMARS


def parser_of(language: str) -> tree_sitter.Parser:
    """Return the parser of a language; the grammar is loaded when it is first wanted.

    Raises:
        KeyError: the language has no grammar here, see `has_grammar`.
    """
    return tree_sitter.Parser(_grammar(*_GRAMMARS[language]))


@functools.cache
def _grammar(package: str, function: str) -> tree_sitter.Language:
    return tree_sitter.Language(getattr(importlib.import_module(package), function)())
