"""A text in pieces is the text; many changes in one message touch no more than they change."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.server.documents import Change, Document, Edit, Limits, Position
from keyturn.server.pieces import PIECE_CHARS, Pieces
from keyturn.server.secrets import Masked
from tests.server.test_documents import CHANGES, ENCODINGS, Client

LIMITS = Limits(max_document_bytes=10_000_000, max_line_chars=100_000)
TEXTS = st.text("ab\r\né😀\ud83d", max_size=40)
KEY = 'password = "x7Kp2qQz"\n'


def spans_in(data, num_chars) -> tuple[int, int]:
    start = data.draw(st.integers(0, num_chars))
    return start, data.draw(st.integers(start, num_chars))


@pytest.mark.parametrize("size", [1, 2, 5])
@settings(max_examples=100, deadline=None)
@given(text=TEXTS, data=st.data())
def test_pieces_are_the_text_after_any_edits(size, text, data) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keyturn.server.pieces.PIECE_CHARS", size)
        pieces = Pieces(text)
        for _ in range(data.draw(st.integers(0, 12))):
            start, end = spans_in(data, len(text))
            new = data.draw(TEXTS)
            pieces.replace(start, end, new)
            text = text[:start] + new + text[end:]
            assert (str(pieces), len(pieces)) == (text, len(text))
            assert "".join(pieces[at] for at in range(len(text))) == text
            start, end = spans_in(data, len(text))
            assert pieces.part(start, end) == text[start:end]
            assert pieces.part(start - 1, end + 1) == text[max(0, start - 1) : end + 1]
            assert pieces.part(end + 1, start) == ""


@pytest.mark.parametrize("size", [1, 3, PIECE_CHARS])
@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, changes=st.lists(CHANGES.filter(lambda one: one.start is not None), max_size=40))
def test_many_changes_at_once_are_those_of_a_naive_client(size, encoding, text, changes) -> None:
    if encoding == "utf-8":  # where no client can cut a character, and none has half of one
        text = text.replace("\ud83d", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keyturn.server.pieces.PIECE_CHARS", size)
        held, client = Document("file:///a.py", 1, text, encoding, LIMITS), Client(text, encoding)
        edits = held.change(changes, 2)
        for change in changes:
            client.change(change)
        assert held.text == client.text
        assert edits is not None
        for start, end, new in edits:
            text = text[:start] + new + text[end:]
        assert text == client.text
        fresh = Document("file:///a.py", 1, text, encoding, LIMITS)
        offsets = range(len(text) + 1)
        assert [*map(held.position, offsets)] == [*map(fresh.position, offsets)]


@pytest.mark.parametrize("size", [1, 3, PIECE_CHARS])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_many_edits_of_secrets_keep_the_engine_in_step(size, data) -> None:
    lines = st.sampled_from(
        [KEY, KEY[:15], "x = 1\n", "\r", "\n", "-----BEGIN PRIV" + "ATE KEY-----\n"]
    )
    texts = st.lists(lines, max_size=6).map("".join)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keyturn.server.pieces.PIECE_CHARS", size)
        text = data.draw(texts)
        held = Masked(text, "python")
        engine, edits = held.text, []
        for _ in range(data.draw(st.integers(0, 20))):
            start, end = spans_in(data, len(text))
            edits.append(Edit(start, end, data.draw(texts)))
            text = text[:start] + edits[-1].text + text[end:]
        for start, end, new in held.edit(edits):
            engine = engine[:start] + new + engine[end:]
        whole = Masked(text, "python")
        assert (held.plain, held.text, held.spans) == (text, whole.text, whole.spans)
        assert engine == whole.text


@pytest.mark.parametrize("order", ["down", "up", "by turns"])
def test_three_thousand_changes_read_what_they_touch(order, monkeypatch) -> None:
    lines = [*range(0, 18_000, 6)]
    if order != "down":
        lines.reverse()
    if order == "by turns":
        lines[::2] = reversed(lines[::2])
    text = ("x = 1  # some words\n" * 11 + KEY) * 1_700
    held, masked = Document("file:///a.py", 1, text, "utf-16", LIMITS), Masked(text, "python")
    num_read, num_joined = [0], [0]
    part, join = Pieces.part, Pieces.__str__

    def read(pieces, start, end):
        found = part(pieces, start, end)
        num_read[0] += len(found)
        return found

    def joined(pieces):
        num_joined[0] += 1
        return join(pieces)

    monkeypatch.setattr(Pieces, "part", read)
    monkeypatch.setattr(Pieces, "__str__", joined)
    changes = [Change("yy", Position(line, 3), Position(line, 4)) for line in lines]
    masked.edit(held.change(changes, 2))
    assert num_joined == [1]
    assert num_read[0] < 600 * len(lines)
    monkeypatch.undo()
    assert masked.plain == held.text and masked.text == Masked(held.text, "python").text
