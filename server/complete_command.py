"""`keyturn complete`: a place in a file, what is suggested there, and how it is printed."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..engine.syntax.languages import language_of
from ..engine.wire.errors import BadPosition, BadRequest, DocumentRefused
from .arguments import decoded, is_number, names_of, read, settings_of
from .documents import UTF32, Document, Limits, Position
from .file_changes import moved, versions
from .file_completion import Answer, Asked, Here, complete_in_host
from .secrets import HiddenSecrets, HoldsSecret
from .settings import Settings, with_values
from .shown import Shown
from .suggestion import asked, offered, others_offered, untrained
from .trim import Trimmed

# `complete` worked, and there is nothing to suggest.
EXIT_NOTHING = 3


class Place(NamedTuple):
    """A cursor in a file."""

    name: str
    document: Document
    offset: int


def complete(arguments: argparse.Namespace) -> int:
    """Print one completion for a place in a file; with --watch, again whenever it has changed."""
    settings = settings_of(arguments)
    given = {"languages": names_of(arguments.languages), "num_candidates": arguments.candidates}
    settings = with_values(settings, **given)
    if arguments.candidates is not None and not arguments.json:
        raise BadRequest("--candidates is only seen in the JSON: add --json")
    if arguments.watch and arguments.stdin:
        raise BadRequest("--watch and --stdin exclude each other: standard input does not change")
    written = sys.stdin.buffer.read() if arguments.stdin else None
    place = open_place(arguments.place, settings, written)
    here = Here(settings)
    if not arguments.watch:
        return _complete_at(place, here, settings, arguments)
    is_first = True
    for _ in versions(place.name):
        try:
            if not is_first:
                place = _read_again(place, settings)
            _complete_at(place, here, settings, arguments)
        except (BadRequest, DocumentRefused) as error:
            if is_first:
                raise
            sys.stderr.write(f"keyturn: {error}\n")
        is_first = False
    raise AssertionError("a file has versions without end")


def _read_again(place: Place, settings: Settings) -> Place:
    """Return the place in the file as it is now: it has moved with the text around it."""
    name, document = place.name, _document(place.name, read(place.name), settings)
    return Place(name, document, moved(place.offset, place.document.text, document.text))


def _complete_at(
    place: Place, here: Here, settings: Settings, arguments: argparse.Namespace
) -> int:
    text, offset = place.document.text, place.offset
    language = language_of("", place.name)

    uri = place.document.uri
    secrets = HiddenSecrets(lambda: settings.hide_secrets)
    seen = secrets.whole(place.document)  # by the engine

    def reason_against(languages: tuple[str, ...]) -> str | None:
        return untrained("", place.name, languages, settings.languages)

    def may_be_shown_early(languages: tuple[str, ...]) -> bool:
        # A placeholder is known as one only when it is whole.
        return seen == text and reason_against(languages) is None

    shown = Shown(
        *(text, offset, language, may_be_shown_early),
        as_json=arguments.json,
    )
    params = asked(text, offset, settings.completion_params(), language=language)
    if arguments.candidates is not None:
        params = replace(params, num_candidates=settings.num_candidates)
    request = Asked(place.name, seen, offset, params)
    try:
        completion, languages = _complete(request, here, settings, shown, arguments)
    finally:
        shown.clear()
    others: tuple[str, ...] = ()
    try:
        completion = secrets.offered(uri, completion)
        kept = offered(completion, text, offset, language)
        others = others_offered(completion, text, offset, language, kept.text)
    except HoldsSecret as error:
        kept = Trimmed("", str(error))
    if (reason := reason_against(languages)) is not None:
        kept, others = Trimmed("", f"{reason}, here as --languages {language}"), ()
    if not kept.text and others:
        kept, others = Trimmed(others[0], None), others[1:]
    candidates = (
        None if arguments.candidates is None else [text for text in (kept.text, *others) if text]
    )
    shown.end(completion, kept, settings.model, candidates)
    return 0 if kept.text else EXIT_NOTHING


def _complete(
    request: Asked, here: Here, settings: Settings, shown: Shown, arguments: argparse.Namespace
) -> Answer:
    """Complete in a running host that would say the same, or in this process, as the flags ask."""
    found = None
    if not arguments.no_connect:
        insists = arguments.connect
        found = asyncio.run(complete_in_host(request, settings, shown, insists=insists))
    return found or here.complete(request, shown)


def open_place(place: str, settings: Settings, written: bytes | None = None) -> Place:
    """Read the file of FILE:LINE:COL and find the place in it.

    Args:
        place: as on the command line.
        settings: limits of a document.
        written: what is in the file; None reads it.

    Raises:
        BadRequest: `place` has another form, or the file cannot be read.
        DocumentRefused: the file is binary, not UTF-8, or too large.
        BadPosition: the line or column lies outside the text.
    """
    parts = place.rsplit(":", 2)
    if len(parts) != 3 or not parts[0] or not all(map(is_number, parts[1:])):
        raise BadRequest(f"'{place}': must be FILE:LINE:COL, for instance app.py:10:4")
    name, line, column = parts[0], int(parts[1]), int(parts[2])
    text = read(name) if written is None else decoded(name, written)
    document = _document(name, text, settings)
    if not 1 <= line <= document.num_lines:
        raise BadPosition(f"{name}: line {line} is not one of its {document.num_lines} lines")
    length = len(document.line(line - 1))
    if column > length:
        raise BadPosition(
            f"{name}: column {column} is beyond the end of line {line}, which has {length} "
            "characters; columns count from 0"
        )
    return Place(name, document, document.offset(Position(line - 1, column)))


def _document(name: str, text: str, settings: Settings) -> Document:
    document = Document(Path(name).resolve().as_uri(), 0, text, UTF32, _limits(settings))
    if document.refusal:
        raise DocumentRefused(f"{name}: {document.refusal}")
    return document


def _limits(settings: Settings) -> Limits:
    return Limits(settings.max_document_bytes, settings.max_line_chars)
