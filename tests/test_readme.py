"""The READMEs' settings, figures, map and lists are those of the code and of the saved runs."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLOORS = ("server", "engine", "kernels", "tests", "benchmarks", "training", "examples")
# Rooms of the product are packages; the others are told by what lies in them.
HOUSED = ("*.py", "*.jsonl", "*.gguf", "*.c")


def test_generated_parts_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec and spec.loader
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    texts = {path: path.read_text(encoding="utf-8") for path in (readme.README, readme.CHECKS)}
    for name in readme.PARTS:
        for mark in (f"<!-- {name} -->\n", f"<!-- /{name} -->\n"):
            assert sum(text.count(mark) for text in texts.values()) == 1, mark
    for text in texts.values():
        assert text == readme.written(text), "run benchmarks/readme.py"


def test_ten_headline_figures_each_with_a_baseline_and_a_machine() -> None:
    part = README[README.index("<!-- figures -->") : README.index("<!-- /figures -->")]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line[:2] == "| "][2:]
    assert len(rows) == 10
    assert all(len(row) == 4 and all(row) for row in rows)


def named_in_map() -> tuple[set[str], set[str]]:
    """Return the folders and the floors' own modules that the picture of the layout names."""
    layout = README[README.index("\n## Layout") : README.index("\n## Limits")]
    folders: set[str] = set()
    modules: set[str] = set()
    floor = ""
    for line in layout.splitlines():
        # Names, and behind two spaces what they are.
        found = re.match(r"    (  )?(\w\S*(?: \S+)*?)(?:  |$)", line)
        if found is None:
            continue
        names = found[2].split()
        if found[1] is None:
            floor = names[0].strip("/")
            folders.add(floor)
            continue
        folders |= {f"{floor}/{name.strip('/')}" for name in names if name.endswith("/")}
        modules |= {f"{floor}/{name}.py" for name in names if not name.endswith("/")}
    return folders, modules


def test_map_names_every_room_and_nothing_that_is_not_there() -> None:
    folders, modules = named_in_map()
    housed = {
        path.parent for floor in FLOORS for kind in HOUSED for path in (ROOT / floor).rglob(kind)
    }
    rooms = {path.relative_to(ROOT).as_posix() for path in housed}
    # Tests have a folder for each floor, traces are a kind of example, editors have languages of
    # their own: a line says so.
    others = ("tests", "examples", "editors")
    rooms = {room for room in rooms if room.split("/")[0] not in others}
    assert {folder for folder in folders if folder.split("/")[0] not in others} == rooms
    own = {
        path.relative_to(ROOT).as_posix()
        for floor in ("server", "engine", "kernels")
        for path in (ROOT / floor).glob("[!_]*.py")
    }
    assert modules == own


def test_every_path_named_in_prose_exists() -> None:
    for name in ("README.md", "benchmarks/README.md", "training/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for path in re.findall(
            r"\b(?:server|engine|kernels|tests|benchmarks|training)/[\w./-]+", text
        ):
            path = path.rstrip(".")
            if not path.startswith("tests/engine/fixtures") and "…" not in path:
                assert (ROOT / path).exists(), f"{name} names {path}"


def test_every_benchmark_is_listed() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8") + (
        ROOT / "Makefile"
    ).read_text(encoding="utf-8")
    # `bench_matmul.py` is a section of `bench_kernels.py`.
    for path in (ROOT / "benchmarks").glob("bench_*.py"):
        assert path.name in text or path.stem == "bench_matmul", path.name


def test_modules_named_in_docstrings_exist() -> None:
    """A moved file takes its mentions with it: `room/module.py` or `module.py` in back quotes."""
    floors = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
    files = {path.relative_to(ROOT).as_posix() for path in floors}
    names = {Path(file).name for file in files}
    for floor in ("server", "engine", "kernels", "benchmarks", "training"):
        for path in (ROOT / floor).rglob("*.py"):
            for name in re.findall(r"`([\w/]+\.py)`", path.read_text(encoding="utf-8")):
                where = path.relative_to(ROOT)
                if "/" in name:
                    assert any(file.endswith(name) for file in files), f"{where} names {name}"
                assert Path(name).name in names, f"{where} names {name}"
