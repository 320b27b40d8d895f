#!/usr/bin/env python3
r"""Download all that sources.json names: packages, the reserved ones, repositories, HumanEval.

    python -m training.fetch_sources dl

Only the registries' own clients and git are used (`pip download`, `npm pack`, `apt-get source`,
`apt-get download`, `git fetch`), with pinned versions and commits and without dependencies. DIR
gets whl/, npm/, reserved/whl/, reserved/npm/, previous/whl/, previous/npm/ (of some packages the
newest release before the pinned one), debian/source/, debian/binary/, the same in reserved/,
repositories/OWNER+NAME/repo and HumanEval-SingleLineInfilling.jsonl.gz. What is already there
stays, so a killed run goes on where it was. A package that cannot be had (no wheel, withdrawn, no
apt on this machine) is reported and left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .data.apt import apt_options, have_binary, have_source

GITHUB = "https://github.com"
BATCH = 8  # packages a command
AT_ONCE = 6  # commands
APT_AT_ONCE, APT_BATCH = 3, 25  # each reads all lists before it begins
TIMEOUT_S = 900  # of a command
# Wheels of some packages exist only for newer Pythons; nothing of them is run.
NEWEST_PYTHON = "3.14"

Item = tuple[str, str]  # name and version
Command = Callable[[list[Item]], list[str]]


def have_wheel(folder: Path, name: str) -> bool:
    """Return whether a wheel of a distribution is there."""
    return _normalized(name) in {_normalized(p.name.split("-")[0]) for p in folder.glob("*.whl")}


def have_tarball(folder: Path, name: str, version: str) -> bool:
    """Return whether the tarball that `npm pack` makes of a package is there."""
    return (folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz").exists()


def fetch(
    items: Iterable[Item],
    commands: list[Command],
    done: Callable[[Item], bool],
    title: str,
    run: Callable[[list[str]], bool] | None = None,
    at_once: tuple[int, int] = (AT_ONCE, BATCH),
) -> list[str]:
    """Download packages in batches, and one by one where that fails.

    Args:
        items: what to get.
        commands: make a command line; the first is for batches too, the others are further tries.
        done: tells whether an item is there.
        title: of the progress bar.
        run: runs a command line and returns whether it succeeded.
        at_once: commands that run, and packages of each.

    Returns:
        The items that could not be had, as "name==version".
    """
    run = run or _succeeds
    todo = [item for item in items if not done(item)]
    bar = tqdm(total=len(todo), desc=title, unit=" packages")

    def get(batch: list[Item]) -> list[str]:
        if run(commands[0](batch)):
            return []
        return [
            _named(item)
            for item in batch
            if not done(item) and not any(run(command([item])) for command in commands)
        ]

    failed: list[str] = []
    commands_at_once, size = at_once
    batches = [todo[start : start + size] for start in range(0, len(todo), size)]
    with ThreadPoolExecutor(commands_at_once) as pool:
        for batch, missing in zip(batches, pool.map(get, batches), strict=True):
            failed += missing
            bar.update(len(batch))
            bar.set_postfix(failed=len(failed))
    return failed


def fetch_pypi(wanted: dict[str, str], folder: Path) -> list[str]:
    """Download wheels; return what could not be had."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]

    def command(*options: str) -> Command:
        return lambda items: [*pip, *options, "-d", str(folder), *(f"{n}=={v}" for n, v in items)]

    commands = [command(), command("--python-version", NEWEST_PYTHON)]
    return fetch(sorted(wanted.items()), commands, lambda i: have_wheel(folder, i[0]), "PyPI")


def fetch_npm(wanted: dict[str, str], folder: Path) -> list[str]:
    """Download tarballs; return what could not be had."""
    folder.mkdir(parents=True, exist_ok=True)
    npm = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    commands: list[Command] = [lambda items: [*npm, *(f"{n}@{v}" for n, v in items)]]
    return fetch(sorted(wanted.items()), commands, lambda i: have_tarball(folder, *i), "npm")


def fetch_previous(sources: dict[str, Any], folder: Path) -> list[str]:
    """Download the newest release before the pinned one; return what could not be had."""
    (folder / "whl").mkdir(parents=True, exist_ok=True)
    (folder / "npm").mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    npm = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination"]
    wanted = {k: [(n, sources[k][n]) for n in sources["previous"][k]] for k in ("pypi", "npm")}

    def wheels(items: list[Item]) -> list[str]:
        return [*pip, "-d", str(folder / "whl"), *(f"{n}<{v}" for n, v in items)]

    def tarballs(items: list[Item]) -> list[str]:
        return [*npm, str(folder / "npm"), *(f"{n}@<{v}" for n, v in items)]

    def has_tarball(item: Item) -> bool:
        return any((folder / "npm").glob(item[0].lstrip("@").replace("/", "-") + "-[0-9]*.tgz"))

    failed = fetch(
        wanted["pypi"], [wheels], lambda i: have_wheel(folder / "whl", i[0]), "earlier, PyPI"
    )
    return failed + fetch(wanted["npm"], [tarballs], has_tarball, "earlier, npm")


def fetch_debian(
    wanted: dict[str, dict[str, str]], folder: Path, release: str, apt: Path
) -> list[str]:
    """Download Debian's packages into `source` and `binary`; return what could not be had.

    Args:
        wanted: "source" and "binary" to name and version.
        folder: for them.
        release: of Debian, whose lists the machine's apt must know.
        apt: folder for lists and cache, made when something is to be fetched.
    """
    failed = []
    options: list[str] | None = None
    for kind, have, verb in (
        ("source", have_source, ["source", "-qq", "--download-only"]),
        ("binary", have_binary, ["download", "-qq"]),
    ):
        place = folder / kind
        place.mkdir(parents=True, exist_ok=True)

        def done(item: Item, have: Callable = have, place: Path = place) -> bool:
            return have(place, *item)

        items = [item for item in sorted(wanted.get(kind, {}).items()) if not done(item)]
        if not items:
            continue
        try:
            options = options or apt_options(apt, release)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"nothing of Debian {release} can be had: {error}", flush=True)
            failed += map(_named, items)
            continue
        get = ["apt-get", *verb, *options]
        commands: list[Command] = [
            lambda some, get=get: [*get, *(f"{name}={version}" for name, version in some)]
        ]
        run = functools.partial(_succeeds, folder=place)
        failed += fetch(items, commands, done, kind, run, (APT_AT_ONCE, APT_BATCH))
    return failed


def fetch_repository(name: str, commit: str, folder: Path, host: str = GITHUB) -> bool:
    """Fetch one commit into the git directory FOLDER/OWNER+NAME/repo; return whether it is there.

    Args:
        name: "OWNER/NAME".
        commit: its full hash.
        folder: of all repositories.
        host: where they are.
    """
    place = folder / name.replace("/", "+") / "repo"
    git = ["git", "-C", str(place)]
    if place.is_dir() and _succeeds([*git, "cat-file", "-e", f"{commit}^{{tree}}"]):
        return True
    place.mkdir(parents=True, exist_ok=True)
    fetch_it = [*git, "fetch", "--quiet", "--depth", "1", f"{host}/{name}", commit]
    commands = [[*git, "init", "--quiet", "--bare"], fetch_it]
    commands.append([*git, "update-ref", "--no-deref", "HEAD", commit])
    return all(map(_succeeds, commands))


def fetch_repositories(wanted: dict[str, dict[str, str]], folder: Path) -> list[str]:
    """Fetch the pinned commits; return what could not be had."""
    return [
        f"{name}@{where['commit']}"
        for name, where in tqdm(wanted.items(), "git", unit=" repositories")
        if not fetch_repository(name, where["commit"], folder)
    ]


def fetch_humaneval(where: dict[str, str], folder: Path) -> list[str]:
    """Fetch HumanEval-Infilling's file, for the overlap check only; return what failed."""
    target = folder / Path(where["file"]).name
    if target.exists():
        return []
    home = folder / "evaluation"
    if not fetch_repository(where["repository"], where["commit"], home):
        return [target.name]
    place = home / where["repository"].replace("/", "+") / "repo"
    show = ["git", "-C", str(place), "show", f"{where['commit']}:{where['file']}"]
    target.write_bytes(subprocess.run(show, capture_output=True, check=True).stdout)
    return []


def _named(item: Item) -> str:
    return f"{item[0]}=={item[1]}"


def _normalized(name: str) -> str:
    """Return a distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _succeeds(command: list[str], folder: Path | None = None) -> bool:
    run = functools.partial(subprocess.run, capture_output=True, timeout=TIMEOUT_S)
    try:
        return run(command, cwd=folder).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.fetch_sources",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", type=Path)
    parser.add_argument("--sources", type=Path, default=Path(__file__).with_name("sources.json"))
    kinds = ("pypi", "npm", "debian", "reserved", "previous", "repositories", "humaneval")
    parser.add_argument("--only", choices=kinds, action="append", help="these only (several)")
    args = parser.parse_args(argv)
    sources = json.loads(args.sources.read_text())
    reserved = args.dir / "reserved"
    wider = sources.get("reserved_wider", {"pypi": {}, "npm": {}})
    wanted = {kind: sources["reserved"][kind] | wider[kind] for kind in ("pypi", "npm")}
    debian = sources.get("debian", {})
    fetch_some = functools.partial(
        fetch_debian, release=debian.get("release", ""), apt=args.dir / "apt"
    )
    steps = {
        "reserved": lambda: (
            fetch_pypi(wanted["pypi"], reserved / "whl")
            + fetch_npm(wanted["npm"], reserved / "npm")
        ),
        "previous": lambda: fetch_previous(sources, args.dir / "previous"),
        "humaneval": lambda: fetch_humaneval(sources["humaneval"], args.dir),
        "repositories": lambda: fetch_repositories(
            sources["repositories"], args.dir / "repositories"
        ),
        "pypi": lambda: fetch_pypi(sources["pypi"], args.dir / "whl"),
        "npm": lambda: fetch_npm(sources["npm"], args.dir / "npm"),
        # Without its reserved packages, which is no reason to do without all the others, nothing.
        "debian": lambda: (
            fetch_some(wider.get("debian", {}), reserved / "debian")
            or fetch_some(debian, args.dir / "debian")
        ),
    }
    args.dir.mkdir(parents=True, exist_ok=True)
    failed = {name: step() for name, step in steps.items() if name in (args.only or kinds)}
    print(json.dumps({"failed": failed}, indent=1))
    needed = failed.get("reserved", []) + failed.get("humaneval", [])
    # Elsewhere than where apt knows the release there is nothing of Debian to keep them apart from.
    if "debian" in (args.only or ()) or any((args.dir / "debian").glob("*/*")):
        kept_apart = [
            _named(item) for kind in wider.get("debian", {}).values() for item in kind.items()
        ]
        needed += [name for name in failed.get("debian", []) if name in kept_apart]
    if needed:
        raise SystemExit(f"without {', '.join(needed)} the evaluation is not kept apart; try again")


if __name__ == "__main__":
    main()
