"""Which document is looked at: it is warmed and healed, the others wait.

Editors have no message for it. An editor that restores a session opens hundreds of documents at
once, and a rename changes as many; warming them all takes minutes and pushes the one in use out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_BURST_SECONDS = 0.05


class Focus:
    """Follows what the user does.

    Args:
        show: told of a document and whether it is looked at from now on.
    """

    def __init__(self, show: Callable[[str, bool], None]) -> None:
        """Nothing is looked at yet."""
        self.uri: str | None = None
        self._show = show
        self._later: asyncio.TimerHandle | None = None

    def at(self, uri: str) -> None:
        """Note that a document is certainly looked at."""
        self._forget_later()
        if uri == self.uri:
            return
        before, self.uri = self.uri, uri
        if before is not None:
            self._show(before, False)
        self._show(uri, True)

    def perhaps_at(self, uri: str) -> None:
        """Note that a document was opened or changed: the last one of a burst is looked at."""
        self._forget_later()
        if uri != self.uri:
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(_BURST_SECONDS, self.at, uri)

    def closed(self, uri: str) -> None:
        """Note that a document is not there any more."""
        if uri == self.uri:
            self.uri = None

    def _forget_later(self) -> None:
        if self._later is not None:
            self._later.cancel()
