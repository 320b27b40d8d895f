import json
import random
import re

import pytest

from keyturn.engine.replay.trace import (
    Complete,
    Cursor,
    Edit,
    Idle,
    map_back,
    next_place,
    parse_trace,
    read_trace,
)
from keyturn.engine.wire.errors import BadRequest

OPEN = {"open": {"path": "a.py", "text": "abcdef"}}


def lines(*records: object) -> bytes:
    return "\n".join(json.dumps(record) for record in records).encode() + b"\n"


def test_every_record_is_parsed_with_its_line() -> None:
    trace = parse_trace(
        lines(
            OPEN,
            {"edit": {"start": 0, "end": 2, "text": "\ud800x\u2028"}},
            {"edits": [{"start": 6, "end": 7, "text": ""}, {"start": 0, "end": 0, "text": "zz"}]},
            {"cursor": {"offset": 8}},
            {"complete": {"offset": 8, "reference": "f"}},
            {"complete": {"offset": 0}},
            {"idle": {"ms": 1.5}},
        )
    )
    assert (trace.path, trace.text) == ("a.py", "abcdef")
    assert trace.records == (
        Edit(2, ((0, 2, "\ud800x\u2028"),)),
        Edit(3, ((0, 0, "zz"), (6, 7, ""))),
        Cursor(4, 8),
        Complete(5, 8, "f"),
        Complete(6, 0, None),
        Idle(7, 1.5),
    )


def test_a_byte_order_mark_is_not_part_of_the_first_record() -> None:
    assert parse_trace(b"\xef\xbb\xbf" + lines(OPEN)).text == "abcdef"


def test_offsets_are_checked_against_the_text_at_that_record() -> None:
    grown = {"edit": {"start": 6, "end": 6, "text": "gh"}}
    parse_trace(lines(OPEN, grown, {"cursor": {"offset": 8}}))
    with pytest.raises(BadRequest, match="line 3: offset 9; the text has 8 code points"):
        parse_trace(lines(OPEN, grown, {"cursor": {"offset": 9}}))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"edit": {"start": 4, "end": 3, "text": ""}}, "edit from 4 to 3"),
        ({"edit": {"start": 0, "end": 7, "text": ""}}, "end 7"),
        ({"edit": {"start": -1, "end": 3, "text": ""}}, "start -1"),
        ({"edit": {"start": 0, "end": 3}}, "give exactly start, end, text"),
        ({"edit": {"start": 0, "end": 3, "text": None}}, "text is null; give a string"),
        ({"edit": {"start": True, "end": 3, "text": ""}}, "start is true; give a whole number"),
        ({"edits": []}, "one or more"),
        (
            {
                "edits": [
                    {"start": 0, "end": 3, "text": ""},
                    {"start": 2, "end": 4, "text": ""},
                ]
            },
            "overlap at 2",
        ),
        ({"cursor": {"offset": 1.5}}, "offset is 1.5"),
        ({"complete": {"offset": 1, "ref": ""}}, "give exactly offset, reference"),
        ({"idle": {"ms": -1}}, "idle of -1 ms"),
        ({"idle": {"ms": float("nan")}}, "idle of NaN ms"),
        ({"idle": {"ms": 10**400}}, "give a number of milliseconds"),
        ({"idle": {"ms": "1"}}, 'ms is "1"; give a number'),
        ({"save": {}}, 'unknown record "save"; use edit'),
        (OPEN, "a second 'open'"),
        ([1], "is not a record"),
        ({"idle": {"ms": 1}, "cursor": {"offset": 0}}, "one object with one key"),
    ],
)
def test_bad_record_names_line_value_and_remedy(record: object, says: str) -> None:
    with pytest.raises(BadRequest, match="^trace line 3: .*" + re.escape(says)):
        parse_trace(lines(OPEN, {"idle": {"ms": 0}}, record))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the trace is empty"),
        (b'{"idle": {"ms": 1}}', 'the first record is "idle"'),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"open": {"path": "a", "text": "\xff"}}', "not UTF-8 at byte 32"),
    ],
)
def test_bad_start_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match="line 1: .*" + re.escape(says)):
        parse_trace(data)


def test_missing_file_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(BadRequest, match="gone.jsonl: No such file"):
        read_trace(tmp_path / "gone.jsonl")


def test_a_place_is_mapped_back_to_the_same_character() -> None:
    rng = random.Random(3)
    for _ in range(500):
        text = list(range(rng.randint(0, 12)))
        cuts = sorted(rng.randint(0, len(text)) for _ in range(2 * rng.randint(0, 3)))
        edits = tuple(
            (start, end, "+" * rng.randint(0, 3))
            for start, end in zip(cuts[::2], cuts[1::2], strict=True)
        )
        after: list[int | str] = list(text)
        for start, end, new in reversed(edits):
            after[start:end] = new
        for offset, character in enumerate(after):
            if isinstance(character, int):
                # Where a deletion left two characters adjacent, the place before the second one
                # may lie on either side of what is gone.
                back = map_back(offset, edits)
                assert text[back : character + 1].count(character) == 1
                gone = {at for start, end, _ in edits for at in range(start, end)}
                assert set(range(back, character)) <= gone
        assert map_back(len(after), edits) <= len(text)


def test_the_next_place_is_found_through_the_edits_between() -> None:
    trace = parse_trace(
        lines(
            OPEN,
            {"idle": {"ms": 1}},
            {"edit": {"start": 0, "end": 0, "text": "12"}},
            {"edit": {"start": 8, "end": 8, "text": "3"}},
            {"complete": {"offset": 5}},
        )
    )
    assert next_place(trace.records) == 3
    assert next_place(trace.records[:3]) is None


@pytest.mark.parametrize("record", [{"k" * 10_000: 1}, {"cursor": {"offset": 10**4000}}])
def test_message_stays_short_when_the_value_is_long(record: dict) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_trace(lines(OPEN, record))
    assert len(str(caught.value)) < 200
