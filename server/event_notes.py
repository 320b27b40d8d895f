"""What the language client says of suggestions, for the log of events."""

from __future__ import annotations

from ..engine.syntax.languages import language_of
from .answers import Answer
from .documents import Document
from .events import Events
from .lsp_items import accepted_chars, shown_item


class EventNotes(Events):
    """`Events` that take what LSP messages bring; see there for the arguments."""

    def name(self, answer: Answer, document: Document, offset: int, *, invoked: bool) -> str:
        """Return the id of what is suggested, for the client to say what became of it.

        Args:
            answer: what is suggested; "" is returned if that is nothing.
            document: where.
            offset: the cursor.
            invoked: the user asked for it.
        """
        if not answer.text:
            return ""
        return self.suggested(
            document.uri,
            answer.start,
            answer.text,
            language=language_of(document.language_id, document.uri),
            invoked=invoked,
            num_candidates=1 + len(answer.others),
            num_typed=offset - answer.start,
        )

    def note_shown(self, params: object) -> None:
        """Note that the user sees a suggestion (`textDocument/didShowCompletion`)."""
        found = shown_item(params)
        if found is not None:
            self.shown(found[0])

    def note_accepted(self, name: object = None, *_: object) -> None:
        """Note that the user took a suggestion (the command of its item)."""
        self.accepted(str(name))

    def note_partly_accepted(self, params: object) -> None:
        """Note that the user took a part (`textDocument/didPartiallyAcceptCompletion`)."""
        found = shown_item(params)
        if found is not None:
            name, text = found
            self.partly_accepted(name, accepted_chars(params, text))
