import importlib
import json
import random
import sys
from pathlib import Path

import pytest

from keyturn.engine.replay.trace import Complete, Edit, parse_trace, read_trace

ROOT = Path(__file__).parent.parent.parent
# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(ROOT / "benchmarks"))
make_traces = importlib.import_module("make_traces")
sys.path.remove(str(ROOT / "benchmarks"))


def source(changed: bool) -> str:
    lines = [f"    line_{number} = call(argument_{number})" for number in range(800)]
    if changed:
        for number in (20, 27, 33, 36, 95, 520, 530, 550, 560):
            lines[number] = lines[number].replace("call", "renamed_call") + f"\n    new_{number}()"
        del lines[30]
    return "\n".join(lines) + "\n"


def apply(text: str, edits: tuple[tuple[int, int, str], ...]) -> str:
    for start, end, new in reversed(edits):
        text = text[:start] + new + text[end:]
    return text


@pytest.mark.parametrize("seed", range(5))
def test_story_ends_in_the_new_text_where_it_was_changed(seed) -> None:
    old, new = source(changed=False), source(changed=True)
    sites = make_traces.choose_sites(old, new, 4)
    assert len(sites) == 2
    assert all(len(site.hunks) >= make_traces.FEWEST_EDITS for site in sites)
    stretches = [old[site.start : site.end] for site in sites]
    hunks = sorted((h.start, h.end, h.text) for site in sites for h in site.hunks)
    whole = apply(old, tuple(hunks))
    records = make_traces.story("a.py", old, sites, random.Random(seed))
    trace = parse_trace("".join(json.dumps(record) + "\n" for record in records).encode())
    text, written = trace.text, []
    for record in trace.records:
        if isinstance(record, Edit):
            text = apply(text, record.edits)
        elif isinstance(record, Complete):
            assert record.reference is not None
            assert record.reference not in text
            assert text[record.offset] == "\n"
            (stretch,) = (each for each in stretches if record.reference in each)
            typed = stretch[: stretch.index(record.reference)]
            assert text[: record.offset].endswith(typed)
            written.append((stretch, typed))
    for stretch, typed in dict(written).items():
        whole = whole.replace(stretch, typed)
    assert text == whole


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples/traces").glob("*.jsonl")), ids=lambda p: p.stem
)
def test_shipped_traces_are_well_formed(path: Path) -> None:
    trace = read_trace(path)
    assert sum(isinstance(record, Complete) for record in trace.records) >= 10
    assert (path.parent / f"{path.stem.split('-')[0]}-LICENSE.txt").exists()
