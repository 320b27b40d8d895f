"""Two checkouts are run by turns and each figure is held against its own."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(ROOT / "benchmarks"))
compare = importlib.import_module("compare")
sys.path.remove(str(ROOT / "benchmarks"))

# A benchmark that keeps the order in which it is run, and says where its package is.
SCRIPT = """
import json, sys, pathlib
import keyturn.server
here = pathlib.Path(__file__).parent.parent
with (here.parent / "order").open("a") as file:
    file.write(here.name + " " + " ".join(sys.argv[1:]) + "\\n")
factor = float((here / "factor").read_text())
print("a table")
print(json.dumps({"benchmark": "x", "ready_ms": {"turn": [10 * factor, 12 * factor]}, "num": 3,
                  "runs": [{"model": "7b", "rows": 1, "step_us": 5.0}], "checks": []}))
"""


def checkout(folder: Path, factor: float) -> Path:
    for name in ("server", "engine", "kernels", "benchmarks"):
        (folder / name).mkdir(parents=True)
    (folder / "server" / "__init__.py").write_text("")
    (folder / "benchmarks" / "bench_x.py").write_text(SCRIPT)
    (folder / "factor").write_text(str(factor))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_pairs_are_interleaved_and_each_side_runs_its_own_tree(tmp_path) -> None:
    old, new = checkout(tmp_path / "old", 1.0), checkout(tmp_path / "new", 1.5)
    done = run(old, new, "bench_x", "--pairs", 3, "--shim", "--", "--only", "a")
    assert done.returncode == 0, done.stderr
    order = (tmp_path / "order").read_text().splitlines()
    assert order == [f"{side} --only a" for side in ("old", "new", "new", "old", "old", "new")]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ratios"] == {"ready_ms.turn": 1.5, "num": 1.0, "runs.7b 1.step_us": 1.0}
    met = {check["name"]: check["met"] for check in result["checks"]}
    assert met["ready_ms.turn, new/old"] is False and met["runs.7b 1.step_us, new/old"] is True


def test_checkout_that_cannot_run_is_named(tmp_path) -> None:
    old = checkout(tmp_path / "old", 1.0)
    done = run(old, tmp_path, "bench_x", "--shim")
    assert done.returncode != 0 and f"{tmp_path} is no checkout" in done.stderr
    done = run(old, old, "bench_x")
    assert done.returncode != 0 and "--shim" in done.stderr
    (old / "benchmarks" / "bench_x.py").write_text("raise SystemExit(3)")
    done = run(old, old, "bench_x", "--shim")
    assert done.returncode != 0 and "ended with 3" in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ready_ms.turn", True),
        ("seconds.load the model", True),
        ("runs.x.prefill_s", True),
        ("models.7b.edits.a.p50_ms", True),
        ("runs.x.prefill_tokens_per_s", False),
        ("copy_bytes_per_s", False),
        ("runs.x.num_tokens_kept", False),
        ("matmul.quant.x.runs.q4.p50_us", True),
        ("ready_ms_p95.turn", True),
    ],
)
def test_times_are_told_by_their_unit(name, expected) -> None:
    assert compare.is_time(name) is expected
