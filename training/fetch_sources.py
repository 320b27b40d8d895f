#!/usr/bin/env python3
"""Download the source packages named in sources.json from PyPI and the npm registry.

Only the registries' own clients are used (`pip download`, `npm pack`), with pinned versions and
without dependencies. What is already in DIR stays, so a killed run goes on where it was. A
package that cannot be had (no wheel for this Python, withdrawn) is reported and left out.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BATCH = 8


def normalized(name: str) -> str:
    """Return a distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def have_wheels(folder: Path) -> set[str]:
    """Return the names of the wheels that are there."""
    return {normalized(p.name.split("-")[0]) for p in folder.glob("*.whl")}


def have_tarballs(folder: Path) -> set[str]:
    """Return the tarballs that are there."""
    return {p.name for p in folder.glob("*.tgz")}


def tarball(name: str, version: str) -> str:
    """Return the file name that `npm pack` gives a package."""
    return f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def run(command: list[str]) -> bool:
    """Run a command quietly; return whether it succeeded."""
    return subprocess.run(command, capture_output=True, timeout=900).returncode == 0


def fetch(
    items: list[tuple[str, str]],
    command: Callable[[list], list[str]],
    done: Callable[[tuple[str, str]], bool],
    fallback: Callable[[list], list[str]] | None = None,
) -> list[str]:
    """Download (name, version) pairs in batches, one by one where that fails; return failures."""
    failed = []
    todo = [item for item in items if not done(item)]
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        if not run(command(batch)):
            for item in batch:
                single = [c([item]) for c in (command, fallback) if c]
                if not done(item) and not any(map(run, single)):
                    failed.append(f"{item[0]}=={item[1]}")
        print(f"{min(start + BATCH, len(todo))}/{len(todo)} failed {len(failed)}", flush=True)
    return failed


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, help="sources.json: {registry: {name: version}}")
    parser.add_argument("dir", type=Path, help="downloads go to DIR/whl and DIR/npm")
    parser.add_argument("--only", choices=("pypi", "npm"), help="one registry only")
    args = parser.parse_args()
    sources = json.loads(args.sources.read_text())
    failed = {}
    if args.only != "npm":
        folder = args.dir / "whl"
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        failed["pypi"] = fetch(
            sorted(sources["pypi"].items()),
            lambda batch: [*pip, "-d", str(folder), *(f"{n}=={v}" for n, v in batch)],
            lambda item: normalized(item[0]) in have_wheels(folder),
            lambda batch: [
                *pip,
                "--python-version",
                "3.14",
                "-d",
                str(folder),
                *(f"{n}=={v}" for n, v in batch),
            ],
        )
    if args.only != "pypi":
        folder = args.dir / "npm"
        folder.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
        failed["npm"] = fetch(
            sorted(sources["npm"].items()),
            lambda batch: [*npm, *(f"{n}@{v}" for n, v in batch)],
            lambda item: tarball(*item) in have_tarballs(folder),
        )
    print(json.dumps({"failed": failed}, indent=1))


if __name__ == "__main__":
    main()
