"""When lines of other files are chosen for a document, and that the engine is told of them.

They stand at the front of the prompt, so they change rarely: when the cursor rests far from where
they were chosen, or another document has been opened. All of it happens in a pause, in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pygls.uris import to_fs_path

from ...engine.syntax.languages import language_of
from ..documents import Document
from ..secrets.masked import Masked
from .alike import QUERY_LINES, Chunk, alike
from .workspace import beside, is_copy, is_kin, readable

log = logging.getLogger(__name__)

# The cursor rests so long before anything is chosen, and is so many lines away before it is again.
REST_S, FAR_LINES = 1.0, 4
# As many of the first lines that are chosen are shown already, and nothing changes.
SETTLED_LINES = QUERY_LINES + 4
# Of open documents so much is looked at, in characters, those opened last first.
_MOST_OPEN_CHARS = 400_000

Show = Callable[[str, Sequence[Chunk]], None]


@dataclass(eq=False)
class _Place:
    """Of one document: where its cursor is, where lines were chosen, and which."""

    offset: int
    chosen_at: int | None = None
    chunks: list[Chunk] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    choosing: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Choose nothing that has been begun."""
        for each in (self.timer, self.choosing):
            if each is not None:
                each.cancel()


class OtherFiles:
    """Chooses for the open documents of one language server.

    Args:
        documents: the open ones, by URI.
        folders: returns URIs of the workspace's folders.
        is_on: whether other files are shown.
        hides_secrets: whether what holds a credential is left out.
        show: tells the engine what is shown in front of a document.
    """

    def __init__(
        self,
        documents: Mapping[str, Document],
        folders: Callable[[], Sequence[str]],
        is_on: Callable[[], bool],
        hides_secrets: Callable[[], bool],
        show: Show,
    ) -> None:
        """Choose nothing yet."""
        self._documents, self._folders, self._show = documents, folders, show
        self._is_on, self._hides_secrets = is_on, hides_secrets
        self._places: dict[str, _Place] = {}

    @property
    def is_choosing(self) -> bool:
        """Whether lines are being chosen, or will be when a cursor has rested."""
        return any(
            each.timer is not None or (each.choosing is not None and not each.choosing.done())
            for each in self._places.values()
        )

    def at(self, uri: str, offset: int) -> None:
        """Note where the cursor of a document is; not called while nothing is shown."""
        document = self._documents.get(uri)
        if document is None or document.refusal is not None:
            return
        place = self._places.setdefault(uri, _Place(offset))
        place.offset = offset
        line = document.position(min(offset, len(document.text))).line
        if place.chosen_at is not None and abs(line - place.chosen_at) < FAR_LINES:
            return
        if place.timer is not None:
            place.timer.cancel()
        place.timer = asyncio.get_running_loop().call_later(REST_S, self._begin, uri)

    def opened(self) -> None:
        """Note that a document was opened, which may be shown in front of the others."""
        for place in self._places.values():
            place.chosen_at = None

    def closed(self, uri: str) -> None:
        """Forget a document."""
        place = self._places.pop(uri, None)
        if place is not None:
            place.stop()

    def reconfigured(self) -> None:
        """Take back what is shown; if it still is to be, it is chosen anew."""
        for uri, place in self._places.items():
            place.stop()
            if place.chunks:
                self._show(uri, ())
        self._places.clear()

    def _begin(self, uri: str) -> None:
        place = self._places[uri]
        place.timer = None
        if place.choosing is not None:
            place.choosing.cancel()
        place.choosing = asyncio.ensure_future(self._choose(uri, place))

    async def _choose(self, uri: str, place: _Place) -> None:
        document = self._documents[uri]
        roots = _real(self._folders())
        path = _file_path(uri)
        if path is None or not roots:
            return
        text = document.text
        offset = min(place.offset, len(text))
        place.chosen_at = document.position(offset).line
        hides, opened = self._hides_secrets(), self._opened(uri, path)
        try:
            chunks = await asyncio.to_thread(choose, path, text, offset, opened, roots, hides)
        except Exception:  # a suggestion needs none of this
            log.exception("nothing is shown in front of %s", uri)
            return
        chunks = settled(chunks, place.chunks)
        if chunks != place.chunks and self._is_on():
            place.chunks = chunks
            self._show(uri, chunks)

    def _opened(self, uri: str, path: str) -> list[Chunk]:
        """Return path and text of the other open documents, the last opened first."""
        found: list[Chunk] = []
        left = _MOST_OPEN_CHARS
        for other, document in reversed([*self._documents.items()]):
            at = _file_path(other)
            if other == uri or at is None or document.refusal is not None or not is_kin(path, at):
                continue
            left -= len(document.text)
            if left < 0:
                break
            found.append(Chunk(at, document.text.replace("\r\n", "\n")))
        return found


def choose(
    path: str, text: str, offset: int, opened: list[Chunk], roots: list[str], hides: bool
) -> list[Chunk]:
    """Return lines of open documents, imported files and those of the folder; reads files.

    Args:
        path: of the document's file.
        text: the document.
        offset: of the cursor, in code points.
        opened: path and text of the other open documents.
        roots: real paths of the workspace's folders; nothing outside of them is shown.
        hides: whether a file with a credential is left out.
    """
    others: dict[str, str] = {}
    names: dict[str, str] = {}
    for at, content in (*opened, *beside(path, text, roots)):
        # What is open is what its editor has, not what lies on the disk.
        real = os.path.realpath(at)
        if real not in others and readable(at, roots) and not is_copy(text, content):
            others[real], names[real] = content, _shown_path(real, roots)
    while True:
        found = alike(text, offset, others.items())
        secret = [each.path for each in found if hides and _holds_secret(others, each.path)]
        if not secret:
            return [Chunk(names[each.path], each.text) for each in found]
        for each in secret:
            del others[each]


def settled(chunks: list[Chunk], before: list[Chunk]) -> list[Chunk]:
    """Return chunks, those that are mostly shown already as they are: their rows are there."""
    found: list[Chunk] = []
    for chunk in chunks:
        head = "".join(chunk.text.splitlines(keepends=True)[:SETTLED_LINES])
        same = (each for each in before if each.path == chunk.path and head in each.text)
        found.append(next(same, chunk))
    return before if set(found) == set(before) else found


def _holds_secret(others: Mapping[str, str], path: str) -> bool:
    return bool(Masked(others[path], language_of("", path)).spans)


def _shown_path(real: str, roots: list[str]) -> str:
    within = (os.path.relpath(real, root) for root in roots if readable(real, [root]))
    return min(within, key=len).replace(os.sep, "/")


def _real(folders: Sequence[str]) -> list[str]:
    """Return the real paths of folders given by URI."""
    paths = map(_file_path, folders)
    return [os.path.realpath(path) for path in paths if path is not None]


def _file_path(uri: str) -> str | None:
    if not uri.lower().startswith("file:"):
        return None
    try:
        return to_fs_path(uri) or None
    except ValueError:
        return None
