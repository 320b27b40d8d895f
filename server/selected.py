"""The entry selected in the editor's own menu, which a suggestion has to continue."""

from __future__ import annotations

from dataclasses import dataclass

from .known_answers import Answer
from .trim import first_line


@dataclass(frozen=True, slots=True)
class Selected:
    """What the editor's own menu would insert: `text` for `start:end` of the document."""

    start: int
    end: int
    text: str

    def ends_at(self, document: str, offset: int) -> bool:
        """Whether it replaces text of the cursor's line up to the cursor."""
        replaced = document[self.start : self.end]
        return self.start <= offset == self.end and first_line(replaced) == replaced


def continuing(selected: Selected | None, text: str, answer: Answer) -> Answer:
    """Return `answer` widened to the menu's range, or nothing when it does not continue it."""
    if selected is None or not answer.text:
        return answer
    before = text[selected.start : answer.start]
    whole = before + answer.text
    if not whole.startswith(selected.text):
        reason = f"the completion does not continue the selected entry {selected.text!r}"
        return Answer("", answer.start, answer.end, reason)
    others = tuple(o for each in answer.others if (o := before + each).startswith(selected.text))
    return Answer(whole, selected.start, answer.end, is_cut=answer.is_cut, others=others)
