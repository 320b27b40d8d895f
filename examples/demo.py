# ruff: noqa: T201 - a script that prints
"""Complete the unfinished line of `intervals.py` and show it in its place."""

import json
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "intervals.py"
KEYTURN = Path(sys.executable).parent / "keyturn"


def main() -> None:
    """Run `keyturn complete` behind the first `return` that returns nothing yet."""
    lines = SOURCE.read_text(encoding="utf-8").split("\n")
    row = next(number for number, line in enumerate(lines) if line.strip() == "return")
    place = f"{SOURCE}:{row + 1}:{len(lines[row])}"
    print(f"$ keyturn complete {place}")
    command = [KEYTURN, "complete", place, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads(done.stdout)
    lines[row] += f"\033[1m{found['text']}\033[0m" if sys.stdout.isatty() else found["text"]
    print("\n".join(lines[row - 2 : row + 3]))
    print(
        f"{found['num_prompt_tokens']} prompt tokens, first token after {found['ttft_ms']:.0f} ms, "
        f"done after {found['total_ms']:.0f} ms ({found['stop_reason']}), model {found['model']}"
    )


if __name__ == "__main__":
    main()
