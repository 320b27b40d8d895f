"""Text to tokens: encoding, and re-encoding only around an edit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models

from ..wire.errors import ModelLoadError
from ..wire.texts import common_ends
from .pre_tokenizers import drop_prefix_space, is_local, parts_of

Ints = NDArray[np.int64]

_SURROGATES = re.compile("[\ud800-\udfff]")
_WHITE = re.compile(r"\s")
# What the names of marks look like. Some files, Qwen's for instance, list their marks among the
# tokens that stand for text; others list HTML tags and runs of white space there, which do.
_MARK = re.compile(
    r"<\|[^<>]*\|>|<｜[^<>]*｜>|<\[[^<>]*\]>|\[[A-Z_/]+\]|▁?<[A-Z]+>"
    r"|\[multimodal\]|\[@BOS@\]|<2mass>"
    r"|</?(fim|file|repo|gh|issue|jupyter|commit|tool|think|start_of|end_of|unused)[\w▁-]*>"
    r"|</?(s|pad|unk|bos|eos|mask)>"
)
# Characters beyond a boundary that the match before it may have looked at: a contraction ('ll)
# that failed has looked two further than the apostrophe it leaves alone.
_LOOK_AHEAD = 3
# Re-encoded beyond an edit before looking for a common boundary; doubled until there is one.
_FIRST_REACH = 48


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of a stretch of text.

    Attributes:
        token_ids: (n,) int64.
        starts: (n,) int64, the code point at which each begins; tokens that share a character
            share its offset.
        is_word_start: (n,) bool, whether a pre-token begins there: merges never cross it.
    """

    token_ids: Ints
    starts: Ints
    is_word_start: NDArray[np.bool_]


class TokenBytes(list[bytes]):
    """Bytes of each token of a vocabulary, b"" for special and unused ones."""

    @cached_property
    def ordered(self) -> list[tuple[bytes, int]]:
        """The bytes and number of every token that has any, in the order of the bytes."""
        return sorted((piece, at) for at, piece in enumerate(self) if piece)


class Tokenizer:
    """A `tokenizers.Tokenizer` for documents.

    The name of a special token, or of a mark, in a document is plain text. A lone surrogate becomes
    U+FFFD, one for one, so offsets stay those of the document. Nothing is added, not even the space
    that some tokenizers put before a text: ours are cut out of a document.

    Attributes:
        raw: the tokenizer that is wrapped.
        vocab_size: rows of the model's embedding.
        bos_id: token that starts every sequence, or None.
        eos_id: token between texts, or None.
        end_ids: tokens that end a text: that one, what was named, and every special one, since
            what follows a token that writes nothing does not continue the text before it.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        end_ids: Iterable[int] = (),
        vocab_size: int | None = None,
    ) -> None:
        """Wrap a tokenizer; its truncation, padding and post-processing are left out.

        Args:
            tokenizer: as read from its file; changed to work as described.
            bos_id: token that starts every sequence.
            eos_id: token between texts.
            end_ids: further tokens that end a text.
            vocab_size: rows of the model's embedding; None takes the number of tokens.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        # It runs even where no special tokens are wanted, and then trims spaces off the offsets.
        tokenizer.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
        drop_prefix_space(tokenizer)
        self.raw = tokenizer
        self.vocab_size = vocab_size or tokenizer.get_vocab_size(with_added_tokens=True)
        _make_marks_special(tokenizer, self.vocab_size)
        self.bos_id = bos_id
        self.eos_id = eos_id
        added = tokenizer.get_added_tokens_decoder()
        special = [at for at, token in added.items() if token.special and at < self.vocab_size]
        named = end_ids if eos_id is None else (*end_ids, eos_id)
        self.end_ids = frozenset((*named, *special))
        plain = [token for token in added.values() if not token.special]
        self._margin = max([_LOOK_AHEAD, *(len(token.content) for token in plain)])
        self._locality = "never" if any(map(_reaches_out, plain)) else _locality(tokenizer)
        self._token_bytes: TokenBytes | None = None

    @property
    def start_id(self) -> int | None:
        """Token before a text that is continued: beginning of text, else the end of another."""
        return self.eos_id if self.bos_id is None else self.bos_id

    def encode(self, text: str) -> Encoded:
        """Encode a stretch of text on its own."""
        encoding = self._raw_encoding(_SURROGATES.sub("\ufffd", text))
        words = np.array([-1 if at is None else at for at in encoding.word_ids], dtype=np.int64)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts_word = np.empty(len(words), dtype=bool)
        starts_word[:1] = True
        # Word numbers start anew after an added token, so a change either way is a boundary.
        starts_word[1:] = (words[1:] != words[:-1]) | (words[1:] < 0)
        token_ids = np.array(encoding.ids, dtype=np.int64)
        if token_ids.max(initial=0) >= self.vocab_size:
            raise ModelLoadError(
                f"the tokenizer has a token {token_ids.max()} and the model {self.vocab_size} of "
                "them; fetch the model again"
            )
        return Encoded(token_ids, offsets[:, 0].copy(), starts_word)

    def _raw_encoding(self, text: str) -> tokenizers.Encoding:
        try:
            return self.raw.encode(text, add_special_tokens=False)
        except BaseException as error:
            # What the library's regular expressions give up on is no Exception.
            if type(error).__name__ != "PanicException":
                raise
            raise ModelLoadError(
                f"the model's tokenizer fails ({error!s:.80}); use another model"
            ) from None

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens; special ones show their names."""
        return self.raw.decode(list(token_ids), skip_special_tokens=False)

    def token_bytes(self) -> TokenBytes:
        """Return the bytes of each of `vocab_size` tokens, b"" for special and unused ones."""
        if self._token_bytes is None:
            pieces = [b""] * self.vocab_size
            added = self.raw.get_added_tokens_decoder()
            is_byte_level = any(
                part["type"] == "ByteLevel" for part in parts_of(self.raw.pre_tokenizer)
            )
            to_bytes = _byte_level_bytes if is_byte_level else _sentence_piece_bytes
            for name, at in self.raw.get_vocab(with_added_tokens=True).items():
                if at in added and added[at].special:
                    name_bytes = b""
                elif at in added and is_byte_level:
                    name_bytes = name.encode()
                else:  # what SentencePiece adds is written as its pieces are: "▁▁" is two spaces
                    name_bytes = to_bytes(name)
                if at < self.vocab_size:
                    pieces[at] = name_bytes
            self._token_bytes = TokenBytes(pieces)
        return self._token_bytes

    def re_encodes_locally(self, text: str) -> bool:
        """Whether an edit's effect on the tokens of such a text ends at a pre-token boundary."""
        return self._locality == "always" or (self._locality == "ascii" and text.isascii())

    def is_settled(self, text: str, at: int, end: int) -> bool:
        """Whether a pre-token boundary at `at` depends on nothing from `end` on.

        No known pre-tokenizer looks behind; a match that ends before something other than white
        space has looked at most a fixed number of characters further.
        """
        return at + self._margin <= end and not text[at].isspace()


class Stretch:
    """A stretch of text that is kept encoded while it changes.

    Attributes:
        text: what is encoded.
        token_ids: (n,) int64, always equal to `tokenizer.encode(text).token_ids`.
        starts: (n,) int64, code point of each token in `text`.
        is_word_start: (n,) bool, whether a word of the pre-tokeniser starts with each token.
    """

    def __init__(self, tokenizer: Tokenizer, text: str = "") -> None:
        """Encode a first text."""
        self._tokenizer = tokenizer
        self.text = text
        self._set(tokenizer.encode(text))

    def _set(self, encoded: Encoded) -> None:
        self.token_ids = encoded.token_ids
        self.starts = encoded.starts
        self.is_word_start = encoded.is_word_start

    def update(self, text: str) -> None:
        """Take a new text; only what lies around the difference is encoded again.

        Cost: comparing and splicing are linear in the stretch (memory copies), encoding in the
        distance between the first and the last difference.
        """
        old = self.text
        start, tail = common_ends(old, text)
        if start == len(old) == len(text):
            return
        self.text = text
        local = self._tokenizer.re_encodes_locally(old) and self._tokenizer.re_encodes_locally(text)
        if local:
            self._splice(start, len(old) - tail, len(text) - tail)
        else:
            self._set(self._tokenizer.encode(text))

    def _splice(self, start: int, old_end: int, new_end: int) -> None:
        """Encode from the last boundary before the edit to the first common one after it."""
        text, tokenizer = self.text, self._tokenizer
        first = int(np.searchsorted(self.starts, start))
        while first and not self._restarts(first, start):
            first -= 1
        begin = int(self.starts[first]) if first else 0
        reach = _FIRST_REACH
        while True:
            end = min(new_end + reach, len(text))
            piece = tokenizer.encode(text[begin:end])
            if end == len(text):
                last, cut = len(self.token_ids), len(piece.token_ids)
                break
            found = self._common_boundary(old_end, new_end, begin, end, piece)
            if found is not None:
                last, cut = found
                break
            reach *= 2
        moved = new_end - old_end
        self._set(
            Encoded(
                np.concatenate(
                    [self.token_ids[:first], piece.token_ids[:cut], self.token_ids[last:]]
                ),
                np.concatenate(
                    [
                        self.starts[:first],
                        piece.starts[:cut] + begin,
                        self.starts[last:] + moved,
                    ]
                ),
                np.concatenate(
                    [
                        self.is_word_start[:first],
                        piece.is_word_start[:cut],
                        self.is_word_start[last:],
                    ]
                ),
            )
        )

    def _restarts(self, index: int, edit_start: int) -> bool:
        """Whether encoding can start anew at a token: a boundary the edit has no say in."""
        at = int(self.starts[index]) if index < len(self.starts) else len(self.text)
        return (
            index < len(self.starts)
            and bool(self.is_word_start[index])
            and self._tokenizer.is_settled(self.text, at, edit_start)
        )

    def _common_boundary(
        self, old_end: int, new_end: int, begin: int, end: int, piece: Encoded
    ) -> tuple[int, int] | None:
        """Find a boundary after the edit that old and new tokens share.

        From there on both texts are the same and so are their tokens.

        Returns:
            Index of the old token and of the piece's token that begin there, or None.
        """
        moved = new_end - old_end
        for cut in range(int(np.searchsorted(piece.starts, new_end - begin)), len(piece.starts)):
            at = int(piece.starts[cut]) + begin
            if not piece.is_word_start[cut] or not self._tokenizer.is_settled(self.text, at, end):
                continue
            last = int(np.searchsorted(self.starts, at - moved))
            if (
                last < len(self.starts)
                and self.starts[last] == at - moved
                and self.is_word_start[last]
            ):
                return last, cut
        return None


def _locality(tokenizer: tokenizers.Tokenizer) -> str:
    """Return for which texts edits stay local: "always", "ascii" or "never"."""
    if not isinstance(tokenizer.model, models.BPE) or tokenizer.model.dropout:
        return "never"
    parts = parts_of(tokenizer.pre_tokenizer)
    if not all(is_local(part) for part in parts):
        return "never"
    if not any(part["type"] == "Split" or part.get("use_regex") for part in parts):
        return "never"  # nothing cuts a text into words
    normalizers = [part["type"] for part in parts_of(tokenizer.normalizer)]
    if not normalizers:
        return "always"
    return "ascii" if normalizers == ["NFC"] else "never"


def _make_marks_special(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> None:
    """Tell a tokenizer that marks which its file lists as text are none, nor what no row is of."""
    names = [
        token.content
        for at, token in tokenizer.get_added_tokens_decoder().items()
        if not token.special and (at >= vocab_size or _MARK.fullmatch(token.content))
    ]
    if names:
        again = [tokenizers.AddedToken(name, special=True, normalized=False) for name in names]
        tokenizer.add_special_tokens(again)


def _reaches_out(token: tokenizers.AddedToken) -> bool:
    """Whether a token that is looked for in the text itself depends on what is around it."""
    return token.lstrip or token.rstrip or token.single_word or bool(_WHITE.search(token.content))


def _byte_level_alphabet() -> dict[int, int]:
    """Return the byte that each character of a byte-level vocabulary stands for."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = [*visible, *range(256, 256 + len(hidden))]
    return dict(zip(characters, visible + hidden, strict=True))


_ALPHABET = _byte_level_alphabet()
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_level_bytes(name: str) -> bytes:
    try:
        return name.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # spelt as it is
        return name.encode()


def _sentence_piece_bytes(name: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("\u2581", " ").encode()
