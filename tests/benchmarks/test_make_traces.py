import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

from keyturn.engine.trace import Complete, Edit, parse_trace, read_trace

ROOT = Path(__file__).parent.parent.parent
spec = importlib.util.spec_from_file_location("make_traces", ROOT / "benchmarks/make_traces.py")
assert spec and spec.loader
make_traces = importlib.util.module_from_spec(spec)
sys.modules["make_traces"] = make_traces
spec.loader.exec_module(make_traces)


def source(changed: bool) -> str:
    lines = [f"    line_{number} = call(argument_{number})" for number in range(120)]
    if changed:
        for number in (20, 27, 33, 36, 95):
            lines[number] = lines[number].replace("call", "renamed_call") + f"\n    new_{number}()"
        del lines[30]
    return "\n".join(lines) + "\n"


def apply(text: str, edit: Edit) -> str:
    for start, end, new in reversed(edit.edits):
        text = text[:start] + new + text[end:]
    return text


@pytest.mark.parametrize("seed", range(5))
def test_story_ends_in_the_new_text_where_it_was_changed(seed) -> None:
    old, new = source(changed=False), source(changed=True)
    site = make_traces.best_site(old, new)
    assert site is not None
    assert len(site.hunks) >= make_traces.FEWEST_EDITS
    records = make_traces.story("a.py", old, site, random.Random(seed))
    trace = parse_trace("".join(json.dumps(record) + "\n" for record in records).encode())
    stretch = old[site.start : site.end]
    assert stretch not in trace.text
    text = trace.text
    for record in trace.records:
        if isinstance(record, Edit):
            text = apply(text, record)
        elif isinstance(record, Complete):
            assert record.reference is not None
            assert record.reference in stretch
            assert record.reference not in text
            assert text[record.offset] == "\n"
    whole = old
    for hunk in sorted(site.hunks, key=lambda hunk: -hunk.start):
        whole = whole[: hunk.start] + hunk.text + whole[hunk.end :]
    typed = len(text) - (len(whole) - len(stretch))
    at = whole.index(stretch)
    assert text == whole[: at + typed] + whole[at + len(stretch) :]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples/traces").glob("*.jsonl")), ids=lambda p: p.stem
)
def test_shipped_traces_are_well_formed(path: Path) -> None:
    trace = read_trace(path)
    assert sum(isinstance(record, Complete) for record in trace.records) >= 10
    assert (path.parent / f"{path.stem.split('-')[0]}-LICENSE.txt").exists()
