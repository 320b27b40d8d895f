"""A lease's pieces: each has its time, whatever becomes of the others, and leaves its result."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(ROOT / "benchmarks"))
on_gpu = importlib.import_module("on_gpu")
sys.path.remove(str(ROOT / "benchmarks"))


def run(folder, code, limit_s=60.0):
    piece = on_gpu.Piece("piece", ["-c", code], limit_s)
    return on_gpu.run(piece, sys.executable, dict(os.environ), limit_s, folder)


def test_a_piece_leaves_its_result_and_others_their_time(tmp_path, capsys):
    check = {"name": "edits", "value": 3, "unit": "ms", "target": "<= 2", "met": False}
    result = {"benchmark": "compare x", "checks": [check], "ratios": {"a.p50_ms": 1.5}}
    result["medians"] = {"a.p50_ms": [2.0, 3.0], "a.p20_ms": [1.0, 1.0]}
    ended = run(tmp_path, f"print('a table'); print({json.dumps(json.dumps(result))})")
    assert ended.verdict == "ended"
    failed = run(tmp_path, "raise SystemExit('no device')")
    assert (failed.verdict, failed.last_line) == ("failed with 1", "no device")
    child = "import subprocess, time; subprocess.Popen(['sleep', '1000']); print('a', flush=True)"
    stopped = run(tmp_path, f"{child}; time.sleep(1000)", 5.0)
    assert stopped.verdict == "stopped after 5 s"
    assert run(tmp_path, "", 1.0).verdict == "no time left"
    assert json.loads((tmp_path / "results.jsonl").read_text()) == result
    on_gpu.table([ended, failed, stopped])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "p50" in line] == [
        ["a.p50_ms", "2.00", "->", "3.00", "ms", "1.500"]
    ]
    assert any("no device" in line for line in lines)


def test_results_are_kept_each_with_its_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu.harness, "RESULTS", tmp_path)
    names = ("depth", "compare bench_edit_gpu", "depth")
    lines = [json.dumps({"benchmark": name}) for name in names]
    (tmp_path / "results").write_text("\n".join(lines))
    on_gpu.keep(tmp_path / "results")
    assert len((tmp_path / "depth.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "compare.jsonl").read_text() == lines[1] + "\n"


@pytest.mark.parametrize(("folder", "commit"), [("/old", "bbb"), ("/new", "aaa")])
def test_either_checkout_is_told_by_its_commit(tmp_path, folder, commit):
    on_gpu.write_git(tmp_path / "git", Path("/old"), "bbb", "aaa")
    command = [tmp_path / "git", "-C", folder, "describe"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == commit


def test_all_pieces_of_a_lease_have_their_files_and_fit_its_time():
    pieces = on_gpu.pieces_of(ROOT, False, True, [])
    for piece in pieces:
        for word in piece.command:
            assert not word.endswith(".py") or Path(word).is_file()
    assert sum(piece.limit_s for piece in pieces[:5]) <= 570
