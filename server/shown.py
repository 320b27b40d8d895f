"""Where a completion of the command line goes: plain text, JSON, or its place on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..engine.wire.config import Completion
from .trim import Settling, Trimmed

if TYPE_CHECKING:
    from .terminal import InPlace


def print_text(text: str) -> None:
    """Write text as it is: no newline translation, UTF-8 whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


class Shown:
    """One completion, from the first word of progress to its end."""

    def __init__(
        self,
        text: str,
        offset: int,
        language: str | None,
        is_wanted: Callable[[tuple[str, ...]], bool],
        *,
        as_json: bool,
    ) -> None:
        """Show nothing yet.

        Args:
            text: the document.
            offset: the cursor, in code points.
            language: an LSP identifier, see `language_of`.
            is_wanted: whether something is suggested here by a model of such languages.
            as_json: print one JSON object.
        """
        self._as_json = as_json
        self._is_wanted = is_wanted
        self._progress_stands = False
        self._in_place: InPlace | None = None
        if not as_json and sys.stdout.isatty():
            from .terminal import InPlace

            self._in_place = InPlace(text, offset, self.clear)
            self._settling = Settling(text, offset, offset, language)

    def progress(self, what: str) -> None:
        """Show what is being done, in place of what was before, to somebody who watches."""
        is_free = self._in_place is None or not self._in_place.has_begun
        if is_free and sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[Kkeyturn: {what}")
            sys.stderr.flush()
            self._progress_stands = True

    def clear(self) -> None:
        """Take the line of progress away."""
        if self._progress_stands:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._progress_stands = False

    def wrote(self, raw: str, languages: tuple[str, ...]) -> None:
        """Show what of an unfinished completion is certain, where it can be shown."""
        if self._in_place is not None and self._is_wanted(languages):
            self._in_place.show(self._settling.settled(raw))

    def end(
        self,
        completion: Completion,
        kept: Trimmed,
        model: str,
        candidates: list[str] | None = None,
    ) -> None:
        """Show the whole; on standard error, why it is nothing.

        Args:
            completion: the engine's.
            kept: what of it is offered.
            model: what wrote it.
            candidates: all that are offered, if they were asked for.
        """
        self.clear()
        if self._as_json:
            found = {} if candidates is None else {"candidates": candidates}
            print_text(json.dumps(_figures(completion, kept.text, model) | found) + "\n")
        elif self._in_place is not None:
            self._in_place.end(kept.text)
        elif kept.text:
            print_text(kept.text + "\n")
        if not kept.text:
            reason = kept.reason or "the model suggests nothing here"
            sys.stderr.write(f"keyturn: no completion: {reason}\n")


def _figures(completion: Completion, text: str, model: str) -> dict[str, object]:
    return {
        "text": text,
        "model": model,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "num_reused_tokens": completion.num_reused_tokens,
        "ttft_ms": completion.ttft_ms,
        "total_ms": completion.total_ms,
        "num_layers_run": completion.num_layers_run,
        "stop_reason": completion.stop_reason,
    }
