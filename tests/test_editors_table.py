"""`editors/README.md`: every test that its table names exists, and what has none is called open."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "editors" / "README.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TEXT[TEXT.index("| report |") :].splitlines()[2:]
    if line.startswith("|")
]
WITHOUT = ("does not apply", "**open**")


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_test_that_the_table_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", TEXT)
    assert len(named) > 60
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert name in functions_in(ROOT / path), f"{path}::{name}"


def test_every_line_has_a_test_or_says_why_not() -> None:
    assert len(ROWS) > 70
    for row in ROWS:
        assert len(row) in (3, 4) and all(row[:3]), row
        shown = row[3] if len(row) == 4 else ""
        assert "::" in shown or any(word in " ".join(row[2:]) for word in WITHOUT), row


def test_every_path_named_exists() -> None:
    for path in re.findall(r"`(tests/[\w/]+\.py)", TEXT):
        assert (ROOT / path).is_file(), path
