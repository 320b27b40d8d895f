"""The benchmark of loading runs: fresh processes, first and second start, figures that add up."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "models.py"


def test_a_small_shape_is_packed_at_the_first_start_and_mapped_at_the_second(tmp_path):
    command = [sys.executable, SCRIPT, "--shape", "tiny", "--quants", "q4", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    first, second = found["rows"]
    assert (first["start"], second["start"]) == ("first", "second")
    assert first["packed_bytes"] == second["packed_bytes"] > 1e7
    for row in (first, second):
        assert 0 < row["torch"] < row["engine"] < row["loaded"] < row["first_token"]
    assert second["anonymous_bytes"] < first["anonymous_bytes"]
    assert list(tmp_path.iterdir()) == []
