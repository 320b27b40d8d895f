"""The evaluation sets: from each kind so many traces, spread over packages and files."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from . import cursor, elsewhere, keystrokes
from .cases import Case
from .dependent import change, python, script
from .sources import CHAINS, Source, licence, pairs, release, singles

KINDS = (*elsewhere.KINDS, *change.KINDS, *cursor.KINDS, *keystrokes.KINDS)
T = TypeVar("T")


def write_sets(
    folder: Path, per_kind: int, seed: int, cache: Path, kinds: Iterable[str] = KINDS
) -> None:
    """Write FOLDER/KIND/NNN-package-file.jsonl and FOLDER/index.json; print the counts.

    Kinds that are not asked for stay as they are, in the index too.
    """
    index = read_index(folder)
    for kind in kinds:
        shutil.rmtree(folder / kind, ignore_errors=True)
        (folder / kind).mkdir(parents=True)
        rows = []
        for number, (source, case) in enumerate(islice(chosen(kind, seed, cache), per_kind)):
            name = f"{number:03}-{source.package}-{Path(source.path).stem.strip('_')}.jsonl"
            path = folder / kind / name
            with path.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(record) + "\n" for record in case.records)
            rows.append(about(kind, source, case) | {"file": f"{kind}/{name}"})
        index["traces"] = [row for row in index["traces"] if row["kind"] != kind] + rows
        print(f"{kind}: {len(rows)} traces{'' if len(rows) >= per_kind else ', all there are'}")
    index["packages"] = {
        package: {
            "licences": {
                version: licence(release(package, version), cache) for version in versions.split()
            },
            "trained_on": False,
        }
        for package, versions in CHAINS.items()
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    counts = Counter(row["package"] for row in index["traces"])
    for package, fields in index["packages"].items():
        versions = list(fields["licences"])
        named = " or ".join(sorted(set(fields["licences"].values())))
        print(f"{package} {versions[0]} to {versions[-1]}, {named}: {counts[package]} traces")


def read_index(folder: Path) -> dict:
    """Return what the folder's index says, or an empty one."""
    path = folder / "index.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"traces": []}


def about(kind: str, source: Source, case: Case) -> dict[str, object]:
    """Return a trace's line of the index."""
    return {
        "kind": kind,
        "package": source.package,
        "version": source.version,
        "path": source.path,
        "language": source.language,
        "distance": case.distance,
        "side": case.side,
        "num_edits": case.num_edits,
        "num_completions": sum("complete" in record for record in case.records),
        "num_characters": len(case.records[0]["open"]["text"]),
        "detail": case.detail,
    }


def chosen(kind: str, seed: int, cache: Path) -> Iterator[tuple[Source, Case]]:
    """Yield the cases of a kind: from package after package, and in each from file after file."""
    given = pairs if kind in elsewhere.KINDS else singles
    find = finder(kind)

    def of_file(source: Source) -> Iterator[tuple[Source, Case]]:
        rng = random.Random(f"{seed} {kind} {source.package} {source.version} {source.path}")
        for case in find(source, rng):
            yield source, case

    def of_package(package: str) -> Iterator[tuple[Source, Case]]:
        sources = list(given(package, cache))
        random.Random(f"{seed} {kind} {package}").shuffle(sources)
        return in_turn(map(of_file, sources))

    seen: set[tuple[str, str]] = set()
    for source, case in in_turn(map(of_package, CHAINS)):
        key = source.package, case.reference
        if key not in seen:
            seen.add(key)
            yield source, case


def finder(kind: str) -> Callable[[Source, random.Random], Iterator[Case]]:
    """Return what finds the cases of a kind in a source."""
    if kind in elsewhere.KINDS:
        return partial(elsewhere.cases, kind)
    if kind in cursor.KINDS:
        return partial(cursor.cases, kind)
    if kind in keystrokes.KINDS:
        return keystrokes.cases

    def find(source: Source, rng: random.Random) -> Iterator[Case]:
        changes = (python if source.language == "py" else script).changes
        return change.cases(kind, source, rng, changes)

    return find


def in_turn(iterators: Iterable[Iterator[T]]) -> Iterator[T]:
    """Yield one of each, then the next of each, until all have ended."""
    waiting = list(iterators)
    while waiting:
        left = []
        for each in waiting:
            for item in islice(each, 1):
                yield item
                left.append(each)
        waiting = left
