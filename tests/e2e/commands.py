"""`keyturn` as a user runs it."""

import os
import subprocess
import sys

KEYTURN = [sys.executable, "-P", "-m", "keyturn.server"]


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Run a command to its end, with pipes for its output."""
    return subprocess.run(
        [*KEYTURN, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )
