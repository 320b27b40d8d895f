"""What the host needs of an engine and its sessions. No torch here.

`engine.Engine` and `session.Session` are such, and so are the tests' fakes: a type checker compares
them with what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from ..wire.config import Completion, CompletionParams, EngineConfig

Check = Callable[[], None]
# Receives a piece of text and its probability.
OnText = Callable[[str, float], None]


class EngineSession(Protocol):
    """One open document. Methods that take `check` may be left by what it raises, and repeated."""

    @property
    def text(self) -> str:
        """The document's text."""
        ...

    @property
    def anchor(self) -> int | None:
        """Where prefix and suffix of the layout meet."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def num_stale(self) -> int:
        """Rows that are not what a full prefill would give."""
        ...

    @property
    def num_to_heal(self) -> int:
        """Rows that `heal` would recompute; less than the stale ones where not all are worth it."""
        ...

    @property
    def is_narrow(self) -> bool:
        """Whether the prompt shows less than the whole window does."""
        ...

    @property
    def has_to_grow(self) -> bool:
        """Whether `grow` has something to do."""
        ...

    @property
    def shows_others(self) -> bool:
        """Whether the model sees, or will see, anything of other files."""
        ...

    def show_others(self, others: Sequence[tuple[str, str]]) -> None:
        """Say what of other files is shown, path and text of each; `grow` does it."""

    def edit(self, edits: Sequence[tuple[int, int, str]]) -> None:
        """Apply edits (start, end, text), all in code points of the text before any of them.

        Raises:
            BadPosition: one lies outside the text; nothing was changed.
        """

    def set_text(self, text: str) -> None:
        """Replace the whole text."""

    def set_cursor(self, offset: int) -> None:
        """Say where the next completion is expected.

        Raises:
            BadPosition: the offset lies outside the text.
        """

    def sync(self, check: Check) -> None:
        """Make the cache follow text and cursor, in a narrow window where that takes too long.

        Without a cursor, nothing.
        """

    def grow(self, check: Check) -> None:
        """`sync`, widen a narrow window until it is whole, and show other files."""

    def heal(self, max_rows: int, check: Check) -> object:
        """Recompute stale rows, at most so many."""

    def drop_cache(self) -> None:
        """Give the cache's memory back."""

    def complete(
        self,
        offset: int,
        params: CompletionParams,
        check: Check,
        on_text: OnText | None = None,
        heal: bool = False,
    ) -> Completion:
        """Complete at a place; with `heal`, from a cache that equals a full prefill.

        Raises:
            EngineError: in words for the user, or whatever `check` raises.
        """
        ...


class LoadedModel(Protocol):
    """A model in memory."""

    @property
    def languages(self) -> tuple[str, ...]:
        """What it was trained on, as LSP identifiers; empty if it does not say."""
        ...


class HostedEngine(Protocol):
    """Models and open documents; used from one thread."""

    def load(self, model: str, progress: Callable[[str, int], None] | None = None) -> LoadedModel:
        """Load a model, telling what is done and the percentage.

        Raises:
            EngineError: it cannot be loaded.
        """
        ...

    def adapt(self, model: str, adapter: str | None) -> None:
        """Serve an adapter beside a loaded model, in place of the one before; None: none.

        Raises:
            EngineError: it cannot be; the one before stays.
        """

    def warm(self) -> bool:
        """Prepare a piece of what may be needed later; return whether there was any."""
        ...

    def open(
        self,
        key: Hashable,
        text: str,
        *,
        path: str,
        model: str,
        policy: str,
        layout: str | None = None,
    ) -> EngineSession:
        """Open a document, or open it anew.

        Raises:
            EngineError: the model cannot be loaded or has no such layout.
        """
        ...

    def close(self, key: Hashable) -> None:
        """Forget a document; closing one that is not open is no error."""

    def status(self) -> dict[str, Any]:
        """Return what is loaded and held, as plain data."""
        ...


MakeEngine = Callable[[EngineConfig], HostedEngine]
