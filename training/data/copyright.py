"""Which files of a Debian package may be used: its machine-readable debian/copyright.

The format is DEP-5, "Machine-readable debian/copyright file" 1.0
(www.debian.org/doc/packaging-manuals/copyright-format/1.0).
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Canonical name of each licence that is enough, and how short names of it look. Anything may follow
# behind a separator ("BSD-3-clause-Google", "Expat~Someone"), but for what `_MORE` finds.
_PERMISSIVE = {
    "MIT": r"expat|mit(/x(11)?)?|x11",
    "BSD": r"bsd[23]?|[23]-clause-bsd",
    "ISC": r"isc",
    "Apache-2.0": r"(apache|asl)(-license)?-?2(\.0)?",
    "Zlib": r"zlib|libpng",
    "Unlicense": r"unlicense",
    "Boost": r"bsl-1(\.0)?|boost(-1\.0)?",
    "Public Domain": r"public-domain|pd",
    "CC0": r"cc0(-1\.0)?",
    "0BSD": r"0bsd",
}
_NAMES = {
    name: re.compile(rf"({pattern})([-~_.].*)?", re.I) for name, pattern in _PERMISSIVE.items()
}
# Variants that ask for more than their name says.
_MORE = re.compile(
    r"\b4[-_ ]?clause|bsd-?4|advert|attribution|protection|nuclear|military|commercial|"
    r"commons[-_ ]clause|gpl"
)
_EXCEPTION = re.compile(r" with llvm[- ]exceptions?")  # it only permits more
_FORMAT = re.compile(r"copyright-format|dep-?5", re.I)


class Stanza(NamedTuple):
    """What one paragraph says: patterns of files, and the first line of their licence."""

    patterns: re.Pattern[str]
    licence: str


def parse_copyright(text: str) -> list[Stanza]:
    """Return the paragraphs about files, in order; none if the text is not of that format."""
    paragraphs = [_fields(part) for part in re.split(r"\n[ \t]*\n", text)]
    if not paragraphs or not _FORMAT.search(paragraphs[0].get("format", "")):
        return []
    stanzas = []
    for fields in paragraphs:
        if files := fields.get("files", "").split():
            licence = fields.get("license", "").split("\n")[0].strip()
            stanzas.append(Stanza(re.compile("|".join(map(_pattern, files)), re.S), licence))
    return stanzas


def licence_of(stanzas: list[Stanza], path: str) -> str:
    """Return the licence of a file by the last paragraph that matches it, "" if none does."""
    found = (s.licence for s in reversed(stanzas) if s.patterns.fullmatch(path))
    return next(found, "")


def permissive(licence: str) -> list[str]:
    """Return the canonical names of the permissive licences that a file may be used under.

    Of licences joined by "or" one is enough, of those joined by "and" all must be permissive. "or"
    binds less, except behind a comma. Empty if there is no permission.
    """
    text = _EXCEPTION.sub("", licence.lower().strip(" ,")).replace("and/or", "or")
    text = text.replace("zlib/libpng", "zlib")
    for separator, need_all in (
        (r"\s*,\s*and\s+", True),
        (r"\s*,\s*or\s+|\s+or\s+|\s*\|\s*", False),
        (r"\s+and\s+|\s*[,&/]\s*", True),
    ):
        parts = re.split(separator, text)
        if len(parts) > 1:
            found = [permissive(part) for part in parts]
            is_enough = all(found) if need_all else any(found)
            return sorted({name for some in found for name in some}) if is_enough else []
    if _MORE.search(text):
        return []
    return [name for name, pattern in _NAMES.items() if pattern.fullmatch(text)][:1]


def _fields(paragraph: str) -> dict[str, str]:
    """Return the fields of a paragraph by their names in small letters."""
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line[:1].isspace():
            fields[name] = fields.get(name, "") + "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.lower()
            fields[name] = value.strip()
    return fields


def _pattern(wildcards: str) -> str:
    r"""Return a pattern of paths: * and ? match slashes too, a backslash takes away their meaning.

    What names a folder is taken to mean all that is in it.
    """
    text = wildcards.removeprefix("./").rstrip("/")
    parts = re.findall(r"\\.|.", text, re.S)
    signs = {"*": ".*", "?": "."}
    return "".join(signs.get(p) or re.escape(p[-1]) for p in parts) + "(?:/.*)?"
