import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.server.documents import (
    Change,
    Document,
    Edit,
    Limits,
    Position,
    num_units,
)

LIMITS = Limits(max_document_bytes=10_000_000, max_line_chars=100_000)
# One to four UTF-8 bytes, every line end, and characters that str.splitlines() would split at.
ALPHABET = "ab \t\n\r\f\v\x1c\x85\u2028\u2029é€中😀🎉\ufeff\0"
TEXTS = st.text(ALPHABET, max_size=40)
CODECS = {"utf-8": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
ENCODINGS = tuple(CODECS)
UNIT_BYTES = {"utf-8": 1, "utf-16": 2, "utf-32": 4}


def document(text: str, encoding: str = "utf-16", limits: Limits = LIMITS) -> Document:
    return Document("file:///a.py", 1, text, encoding, limits)


class Client:
    """A naive client that holds its text in the encoding's own units, split afresh each time."""

    def __init__(self, text: str, encoding: str) -> None:
        self.encoding = encoding
        self.units = text.encode(CODECS[encoding], "surrogatepass")

    @property
    def text(self) -> str:
        return self.units.decode(CODECS[self.encoding], "surrogatepass")

    def unit(self, position: Position) -> int:
        """Byte index of `position` in the encoded text, snapped to a character in UTF-8."""
        lines = re.split("(\r\n|\n|\r)", self.text)
        contents, ends = lines[::2], lines[1::2] + [""]
        codec = CODECS[self.encoding]
        if position.line >= len(contents):
            return len(self.units)
        before = "".join(
            content + end
            for content, end in list(zip(contents, ends, strict=True))[: position.line]
        )
        start = len(before.encode(codec, "surrogatepass"))
        line = contents[position.line].encode(codec, "surrogatepass")
        index = start + min(position.character * UNIT_BYTES[self.encoding], len(line))
        if self.encoding == "utf-8":
            while index < len(self.units) and self.units[index] & 0xC0 == 0x80:
                index -= 1
        return index

    def change(self, change: Change) -> None:
        if change.start is None:
            self.units = change.text.encode(CODECS[self.encoding], "surrogatepass")
            return
        start, end = self.unit(change.start), self.unit(change.end)
        start, end = min(start, end), max(start, end)
        new = change.text.encode(CODECS[self.encoding], "surrogatepass")
        self.units = self.units[:start] + new + self.units[end:]


POSITIONS = st.builds(Position, st.integers(0, 12), st.integers(0, 14))
CHANGES = st.one_of(
    st.builds(Change, TEXTS, POSITIONS, POSITIONS),
    st.builds(lambda text, at: Change(text, at, at), TEXTS, POSITIONS),
    st.builds(lambda text: Change(text), TEXTS),
)


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, notifications=st.lists(st.lists(CHANGES, max_size=4), max_size=8))
def test_text_equals_the_clients_after_any_changes(encoding, text, notifications) -> None:
    held, client = document(text, encoding), Client(text, encoding)
    mirror = text
    for version, changes in enumerate(notifications, start=2):
        edits = held.change(changes, version)
        for change in changes:
            client.change(change)
        assert held.text == client.text
        assert held.version == version
        assert held.num_lines == len(re.split("\r\n|\n|\r", client.text))
        # Its bytes are counted along: just enough room.
        num_bytes = len(client.text.encode("utf-8", "surrogatepass"))
        held.limit(Limits(num_bytes, LIMITS.max_line_chars))
        assert (held.refusal is not None) == ("\0" in client.text)
        held.limit(LIMITS)
        assert (held.refusal is not None) == ("\0" in client.text)
        if edits is None:
            assert any(change.start is None for change in changes)
            mirror = held.text
        else:
            for start, end, new in edits:
                mirror = mirror[:start] + new + mirror[end:]
        assert mirror == client.text
    fresh, offsets = document(client.text, encoding), range(len(client.text) + 1)
    assert [*map(held.position, offsets)] == [*map(fresh.position, offsets)]


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_every_offset_survives_the_round_trip_through_a_position(encoding, text) -> None:
    held = document(text, encoding)
    for offset in range(len(text) + 1):
        inside_crlf = 0 < offset < len(text) and text[offset - 1 : offset + 1] == "\r\n"
        if not inside_crlf:
            assert held.offset(held.position(offset)) == offset


@pytest.mark.parametrize(
    ("encoding", "character", "offset"),
    [
        ("utf-8", 2, 1),
        ("utf-8", 3, 2),
        ("utf-8", 4, 2),
        ("utf-8", 7, 3),
        ("utf-16", 2, 2),
        ("utf-16", 3, 2),
        ("utf-16", 4, 3),
        ("utf-32", 2, 2),
        ("utf-32", 3, 3),
        ("utf-8", 99, 4),
        ("utf-16", 99, 4),
        ("utf-32", 99, 4),
    ],
)
def test_offset_counts_the_negotiated_units_and_clamps(encoding, character, offset) -> None:
    assert document("aé😀b\nc", encoding).offset(Position(0, character)) == offset


def test_position_beyond_the_last_line_is_the_end_of_the_text() -> None:
    held = document("ab\ncd")
    assert held.offset(Position(2, 0)) == 5
    assert held.offset(Position(2**31 - 1, 2**31 - 1)) == 5
    assert held.offset(Position(0, 2**31 - 1)) == 2


def test_only_three_line_ends_end_a_line() -> None:
    held = document("a\fb\u2028c\x85d\ve\nf\r\ng\rh")
    assert held.num_lines == 4
    assert held.offset(Position(1, 0)) == 10
    assert held.position(12) == Position(1, 2)


def test_changes_of_one_notification_each_see_the_one_before() -> None:
    held = document("one\ntwo\n")
    edits = held.change(
        [
            Change("zero\n", Position(0, 0), Position(0, 0)),
            Change("1", Position(1, 0), Position(1, 3)),
            Change("", Position(1, 1), Position(2, 0)),
        ],
        5,
    )
    assert held.text == "zero\n1two\n"
    assert edits == [Edit(0, 0, "zero\n"), Edit(5, 8, "1"), Edit(6, 7, "")]


@pytest.mark.parametrize(
    ("text", "change", "expected", "num_lines"),
    [
        ("a\rb", Change("\n", Position(1, 0), Position(1, 0)), "a\r\nb", 2),
        ("a\rx\nb", Change("", Position(1, 0), Position(1, 1)), "a\r\nb", 2),
        ("a\r\nb", Change("x", Position(0, 1), Position(1, 0)), "axb", 1),
        ("a\nb", Change("\r", Position(0, 1), Position(0, 1)), "a\r\nb", 2),
    ],
)
def test_line_ends_that_meet_or_part_are_counted_anew(text, change, expected, num_lines) -> None:
    held = document(text)
    held.change([change], 2)
    assert (held.text, held.num_lines) == (expected, num_lines)


def test_half_of_a_pair_deleted_by_a_utf16_client_stays_as_a_lone_surrogate() -> None:
    held = document("a😀b")
    held.change([Change("", Position(0, 1), Position(0, 2))], 2)
    assert held.text == "a\ude00b"
    held.change([Change("\ud83d", Position(0, 1), Position(0, 1))], 3)
    assert held.text == "a😀b"


def test_refused_when_binary_and_accepted_again_when_the_nul_goes() -> None:
    held = document("a\0b")
    assert "binary" in (held.refusal or "")
    held.change([Change("", Position(0, 1), Position(0, 2))], 2)
    assert held.refusal is None


def test_refused_while_a_line_is_too_long() -> None:
    held = document("x" * 11 + "\nok", limits=Limits(1000, 10))
    assert "12" in (held.refusal or "")
    assert "max_line_chars = 10" in (held.refusal or "")
    held.change([Change("\n", Position(0, 5), Position(0, 5))], 2)
    assert held.refusal is None


def test_refused_and_dropped_when_too_large_until_replaced_as_a_whole() -> None:
    held = document("é" * 6, limits=Limits(10, 100))
    assert "12 bytes" in (held.refusal or "")
    assert held.text == ""
    assert held.change([Change("x", Position(0, 0), Position(0, 0))], 2) is None
    assert held.refusal is not None
    assert held.change([Change("small")], 3) is None
    assert (held.refusal, held.text) == (None, "small")


def test_refused_when_an_edit_makes_it_too_large() -> None:
    held = document("abc", limits=Limits(10, 100))
    assert held.change([Change("x" * 8, Position(0, 0), Position(0, 0))], 2) is None
    assert "11 bytes" in (held.refusal or "")
    assert held.text == ""


def test_a_dropped_text_stays_refused_when_the_limit_is_raised() -> None:
    held = document("abcdef", limits=Limits(5, 100))
    held.limit(Limits(100, 100))
    assert "open the document again" in (held.refusal or "")


def test_other_limits_are_checked_at_once() -> None:
    held = document("abcdef", limits=Limits(100, 5))
    assert held.refusal is not None
    held.limit(Limits(100, 10))
    assert (held.refusal, held.text) == (None, "abcdef")


def test_a_lost_text_is_refused_until_replaced_as_a_whole() -> None:
    held = document("abc")
    held.lose("a change could not be read")
    assert "close the document and open it again" in (held.refusal or "")
    assert held.change([Change("x", Position(0, 0), Position(0, 0))], 2) is None
    held.change([Change("new")], 3)
    assert (held.refusal, held.text) == (None, "new")


def test_an_edit_of_a_long_file_does_not_split_it_again(monkeypatch) -> None:
    held = document("x = 1  # some words\n" * 20_000)
    scanned = []
    monkeypatch.setattr(
        "keyturn.server.documents.line_starts",
        lambda text, base: scanned.append(len(text)) or [],
    )
    held.change([Change("y", Position(10_000, 3), Position(10_000, 4))], 2)
    assert sum(scanned) < 100


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, notifications=st.lists(st.lists(CHANGES, max_size=4), max_size=8))
def test_a_long_line_is_refused_as_long_as_it_is_there(text, notifications) -> None:
    held = document(text.replace("\0", ""), limits=Limits(10_000, max_line_chars=6))
    for number, changes in enumerate(notifications):
        held.change([one._replace(text=one.text.replace("\0", "")) for one in changes], number)
        lines = re.findall("[^\r\n]*(?:\r\n|\n|\r|$)", held.text)
        assert (held.refusal is not None) == (max(map(len, lines)) > 6)
        held.limit(Limits(10_000, max_line_chars=2))
        assert (held.refusal is not None) == (max(map(len, lines)) > 2)
        held.limit(Limits(10_000, max_line_chars=6))


def test_num_units_counts_each_encoding() -> None:
    assert [num_units("aé😀", encoding) for encoding in ENCODINGS] == [7, 4, 3]
    assert [num_units("\ud83d", encoding) for encoding in ENCODINGS] == [3, 1, 1]
