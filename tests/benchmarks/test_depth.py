"""The benchmark of depths, in parts: pooled they are the whole run, place by place."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
depth = importlib.import_module("depth")
sys.path.remove(str(ROOT / "benchmarks"))
depth_records = depth.depth_records

LINES = [f"    value_{at} = compute({at})\n" for at in range(7)]
MODULE = "".join(f"def function_{at}(a, b):\n{LINES[at % 7]}\n" for at in range(90))
# What does not depend on how quick the machine is.
TIMELESS = ("group", "method", "places", "tokens", "edit similarity", "equal", "excused")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Return options that name single lines and held-out files; nothing is fetched."""
    rows = [
        {
            "task_id": f"SingleLineInfilling/HumanEval/{at}/L0",
            "prompt": "def first(a, b):\n",
            "canonical_solution": line,
            "suffix": "    return a\n",
            "test": "",
            "entry_point": "first",
        }
        for at, line in enumerate(LINES)
    ]
    data = tmp_path / "HumanEval-SingleLineInfilling.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [(name, f"{at}.py", MODULE) for at, name in enumerate(["rich", *"abcdefgh"])]
    monkeypatch.setattr(depth.fim_fetch, "held_out_files", lambda cache, wider: files)
    return ["--data", str(data), "--held-out", "--places", "5"]


@pytest.fixture
def asked(monkeypatch):
    """Return the function that parses a command line."""

    def asked_(*words):
        monkeypatch.setattr(sys, "argv", ["depth.py", *map(str, words)])
        return depth.options()

    return asked_


def test_parts_have_each_place_once_and_a_kept_draw_is_the_same(sources, asked, tmp_path):
    whole = depth.places(asked(*sources))
    assert [(number, place.group) for number, place in whole[:4]] == [
        (0, "single lines"),
        (0, "held-out"),
        (1, "single lines"),
        (1, "held-out"),
    ]
    assert len(whole) == 10
    assert not any(place.path == "0.py" for _, place in whole)  # exits were trained on it
    drawn = tmp_path / "drawn.gz"
    assert depth.places(asked(*sources, "--drawn", drawn)) == whole
    parts = [
        depth.places(asked("--drawn", drawn, "--places", 5, "--part", f"{at}/3"))
        for at in (1, 2, 3)
    ]
    assert [len(part) for part in parts] == [4, 4, 2]
    assert sorted(sum(parts, [])) == sorted(whole)
    fewer = depth.places(asked("--drawn", drawn, "--places", 2))
    assert fewer == whole[:4]


def test_pooled_parts_are_the_run(sources, asked, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(depth.harness, "RESULTS", tmp_path / "results")
    options = [*sources, "--model", tiny_model, "--threads", 1, "--repeats", 1, "--seed", 3]
    options += ["--methods", "exact", "fast"]
    (tmp_path / "results").mkdir()

    def ran(*words):
        asked(*words)
        depth.main()
        *lines, last = capsys.readouterr().out.splitlines()
        return [line for line in lines if " places" not in line], json.loads(last)

    printed, whole = ran(*options, "--raw", tmp_path / "whole", "--save")
    about, *records = (tmp_path / "whole").read_text().splitlines()
    # The same records in three files, the last of which was not written to its end.
    for at in range(3):
        end = '{"group": "held-' if at == 2 else ""
        text = "\n".join([about, *records[at::3], end])
        (tmp_path / f"split{at}").write_text(text)
    split = [tmp_path / f"split{at}" for at in (2, 0, 1)]
    assert ran("--merge", *split, "--save")[0] == printed
    saved = (tmp_path / "results" / "depth.jsonl").read_text().splitlines()
    first, second = ({**json.loads(line), "date": ""} for line in saved)
    assert second.pop("num_processes") == 3
    assert second == first
    # Processes of their own, which have other times.
    files = [tmp_path / f"part{at}" for at in (1, 2)]
    for at, file in enumerate(files, 1):
        ran(*options, "--raw", file, "--part", f"{at}/2")
    _, pooled = ran("--merge", *files)
    for one, other in zip(whole["runs"], pooled["runs"], strict=True):
        assert {key: one[key] for key in TIMELESS} == {key: other[key] for key in TIMELESS}
    assert [row["places"] for row in pooled["runs"]] == [5] * 6
    with pytest.raises(SystemExit, match="a place again"):
        ran("--merge", *files, tmp_path / "whole")
    other = json.loads(about)
    other["about"]["dtype"] = "torch.float16"
    split[0].write_text(json.dumps(other) + "\n")
    with pytest.raises(SystemExit, match="not the same dtype"):
        ran("--merge", *files, split[0])
    split[0].write_text("no file of records\n")
    with pytest.raises(SystemExit, match="no file of --raw"):
        ran("--merge", split[0])
