"""What trimming costs: of the raw answers in a file, what is withheld or cut, and was it right?

Each line of the file is an object with the document's `text`, the `cursor` (code points), its
`path`, what the model wrote (`raw`), its `stop_reason`, and what stood there (`expected`; its first
line counts). An answer is right when its first line is the expected one, alone or followed by what
stands behind the cursor already, and spoiled when that is so before trimming but not after. Exits 1
when more than one in ten that was touched was right.

    python benchmarks/quality/trim_audit.py answers.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from keyturn.engine.syntax.languages import language_of
from keyturn.server.trim import first_line, trim

MOST_SPOILED = 0.1


def main() -> None:
    """Print the figures of each file."""
    spoiled = touched = 0
    for name in sys.argv[1:]:
        counts: Counter[str] = Counter()
        for line in Path(name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            at = row["cursor"]
            language = language_of("", row["path"])
            kept = trim(row["raw"], row["text"], at, at, row["stop_reason"], language)
            before, after = _is_right(row["raw"], row), _is_right(kept.text, row)
            is_touched = first_line(kept.text).rstrip() != first_line(row["raw"]).rstrip()
            counts["answers"] += 1
            counts["right before"] += before
            counts["right after"] += after
            counts["withheld"] += not kept.text and bool(row["raw"].strip())
            counts["first line cut"] += is_touched and bool(kept.text)
            counts["touched that were right"] += is_touched and before and not after
            counts["mended"] += after and not before
            if before and not after:
                print(f"{name}: {row.get('name', '')} was right: {kept.reason or kept.text!r}")
        print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        spoiled += counts["touched that were right"]
        touched += counts["withheld"] + counts["first line cut"]
    if touched:
        print(f"{spoiled} of {touched} that were withheld or cut were right")
    sys.exit(spoiled > MOST_SPOILED * touched)


def _is_right(text: str, row: dict[str, Any]) -> bool:
    first, expected = first_line(text).strip(), first_line(row["expected"]).strip()
    repeated = first.removeprefix(expected).strip()
    rest = first_line(row["text"][row["cursor"] :]).strip()
    return first == expected or (first.startswith(expected) and rest.startswith(repeated))


if __name__ == "__main__":
    main()
