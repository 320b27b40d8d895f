"""What all documents of one model share: its weights, its tokenizer, and what was calibrated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .exits.controller import Exits
from .exits.stop import StopRule
from .generation.draft import DraftRecord
from .model.decoder import Decoder
from .prompt.fim import FimTemplate
from .tokens.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model as sessions use it.

    Attributes:
        name: how it was asked for.
        decoder: its weights.
        tokenizer: its tokenizer.
        template: its fill-in-the-middle format, None if it only continues text.
        window_tokens: most tokens of a prompt, its marks included.
        chars_per_token: characters a token stands for in code, for choosing the window.
        capacity: rows of a session's cache: the prompt and what may be generated.
        drafts: what drafts of its text have been worth.
        exits: where its tokens may leave the layers, if that was calibrated; or what they skip, by
            their number in a completion.
        skips: sub-layers that drafts may leave out, by language, where that was calibrated.
        stop: when a completion is given up, if that was.
    """

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    template: FimTemplate | None
    window_tokens: int
    chars_per_token: float
    capacity: int
    drafts: DraftRecord = field(default_factory=DraftRecord)
    exits: Exits | Callable[[int], bytes] | None = None
    skips: Mapping[str, bytes] = field(default_factory=dict)
    stop: StopRule | None = None

    @property
    def languages(self) -> tuple[str, ...]:
        """What it was trained on, as LSP identifiers; empty if it does not say."""
        return self.template.languages if self.template else ()
