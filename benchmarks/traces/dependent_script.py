"""The same of JavaScript and TypeScript, by their grammars."""

from __future__ import annotations

from collections.abc import Iterator

from .dependent import Change, Names


def changes(kind: str, text: str, names: Names, language: str) -> Iterator[Change]:
    yield from ()
