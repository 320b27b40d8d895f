#!/usr/bin/env python3
"""Filter downloaded packages into documents: deduplicated, decontaminated, held out, packed.

Writes to OUT: collected.bin (everything that passed) with collected.json, held.bin.zst (held-out
files and the reserved packages), train_N.bin.zst (what the budgets keep, in parts), manifest.json
(per package: version, licence, files, characters; what was dropped and why; overlap with
HumanEval). Of Debian's packages come go.bin.zst, rust.bin.zst, java.bin.zst, c.bin.zst (C and C++)
and held_compiled.bin.zst. collected.bin is made once: delete it to filter anew.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .data.budget import cap_weight, fit_budget, split_packages
from .data.contamination import Contamination
from .data.debian import debian_readers, read_binary, read_source
from .data.documents import (
    COMPILED_POOL_OF,
    OLD,
    Document,
    language_of,
    load_documents,
    write_documents,
)
from .data.filtering import (
    COMPILED_JS,
    MAX_LINE_CHARS,
    SOURCE_MAP,
    Dropped,
    Examined,
    Filter,
    cleaned,
    examine,
    held_out,
    skips,
    source_order,
    surplus_test,
    without_licence,
)
from .data.packages import Package, Reader, allowed, package_readers, read_tarball, read_wheel

CAPPED = Dropped("package cap")
REFUSED = Dropped("licence of the file in debian/copyright")
_CAPS_EXAMINED = 3  # caps' worth of files that are looked at: not all of them will be kept
_ADD = "million characters of a pool that are dealt out to train_N.bin.zst too"
HELD_CAP = 60_000  # characters of held-out files per package, so that a few large ones do not rule


ExaminedFiles = list[tuple[str, Examined | Dropped]]


def examine_package(
    read: Reader, contamination: Contamination, licences: dict[str, str]
) -> tuple[Package, ExaminedFiles] | None:
    """Read a package and judge each of its files by itself; None if it cannot be read."""
    package = read()
    if package is None:
        return None
    package.licence = licences.get(package.name, package.licence)
    files, package.files = package.files, []
    examined: ExaminedFiles = []
    if not allowed(package.licence):
        return package, examined
    examined += [(path, REFUSED) for path in package.refused]
    home = f"npm/{package.name.removeprefix('npm:')}/"
    num_characters = 0
    for path, data in sorted(files, key=lambda file: source_order(file[0])):
        if skips(path.removeprefix(home)):
            file = Dropped("path")
        elif not package.program_set and surplus_test(path):
            file = Dropped("test file (55 % left out)")
        elif num_characters > _CAPS_EXAMINED * package.cap:
            file = CAPPED
        else:
            file = examine(path, data, contamination, package.program_set)
            num_characters += len(file.text) if isinstance(file, Examined) else 0
        examined.append((path, file))
    return package, examined


def collect_package(
    package: Package, files: ExaminedFiles, keep: Filter
) -> tuple[list[Document], list[Document], dict[str, Any]]:
    """Return the training and the held-out documents of one package, and its manifest entry."""
    train: list[Document] = []
    held: list[Document] = []
    size: collections.Counter[str] = collections.Counter()
    for path, file in files:
        is_full = isinstance(file, Examined) and size["characters"] > package.cap
        if text := keep.keep(CAPPED if is_full else file):
            hold = held_out(path)
            (held if hold else train).append(Document(package.name, path, text))
            size["held_out_files" if hold else "files"] += 1
            size["held_out_characters" if hold else "characters"] += len(text)
    train.sort(key=lambda document: document.path)
    return train, held, {"version": package.version, "licence": package.licence, **size}


def reserved_documents(
    folder: Path, under: dict[str, str], names: dict[str, str] | None = None
) -> tuple[list[Document], int]:
    """Return the documents of the packages reserved for evaluation (no builds, no locales).

    Args:
        folder: of `fetch_sources`.
        under: npm package to the folder of what people wrote; what lies elsewhere comes last.
        names: of licences, see `debian.read_source`.

    Returns:
        The documents, and how many of them people wrote.
    """
    packages = [read_wheel(path) for path in sorted((folder / "whl").glob("*.whl"))]
    packages += [read_tarball(path) for path in sorted((folder / "npm").glob("*.tgz"))]
    debian = folder / "debian"
    packages += [read_source(path, names) for path in sorted((debian / "source").glob("*.dsc"))]
    packages += [read_binary(path, names) for path in sorted((debian / "binary").glob("*.deb"))]
    documents, others = [], []
    for package in packages:
        name = package.name.removeprefix("npm:")
        written = f"npm/{name}/{under[name]}" if name in under else ""
        for path, data in sorted(package.files):
            is_build = path.endswith((".d.ts", ".d.cts", ".d.mts", ".cjs")) or ".min." in path
            is_copy = package.name.startswith("debian:") and skips(path)
            if is_build or is_copy or "/locales/" in path or b"\x00" in data:
                continue
            text = without_licence(path, data.decode("utf-8", "replace").replace("\r", ""))
            if max(map(len, text.split("\n"))) <= MAX_LINE_CHARS:
                mine = documents if path.startswith(written) else others
                mine.append(Document("reserved:" + package.name, path, text))
    return documents + others, len(documents)


def previous_documents(folder: Path, wanted: list[Document]) -> list[Document]:
    """Return earlier releases of documents, where they were different, as packages "old:NAME"."""
    texts = {(d.package, d.path): d.text for d in wanted}
    found = []
    for read, pattern in ((read_wheel, "whl/*.whl"), (read_tarball, "npm/*.tgz")):
        for package in map(read, sorted(folder.glob(pattern))):
            for path, data in package.files:
                text = texts.get((package.name, path))
                old = cleaned(path, data) if text is not None else None
                if isinstance(old, str) and old != text:
                    found.append(Document(OLD + package.name, path, old))
    return found


def collect(args: argparse.Namespace, sources: dict[str, Any]) -> None:
    """Filter all packages into collected.bin and held.bin.zst; report in collected.json."""
    keep = Filter(Contamination.from_file(args.humaneval))
    under = sources.get("reserved_wider", {}).get("under", {})
    names = sources.get("debian", {}).get("licence_names", {})
    reserved, num_written = reserved_documents(args.reserved, under, names)
    for document in reserved:
        keep.reserve(document.text)
    train: list[Document] = []
    held: list[Document] = []
    packages: dict[str, Any] = {}
    refused: dict[str, str] = {}
    num_characters = 0
    readers = [*debian_readers(args.downloads / "debian", sources)]
    if not args.only_debian:
        readers = package_readers(args.downloads, sources, args.repositories) + readers
    readers = readers[: args.limit]
    _shared[:] = [(keep.contamination, sources.get("licences", {}))]
    pool = multiprocessing.get_context("fork").Pool(args.workers)
    bar = tqdm(pool.imap(_work, readers), total=len(readers), unit=" packages")
    for package, files in filter(None, bar):
        if not allowed(package.licence):
            refused[package.name] = package.licence
            continue
        mine, mine_held, packages[package.name] = collect_package(package, files, keep)
        train += mine
        num_characters += sum(len(document.text) for document in mine)
        bar.set_postfix_str(f"{num_characters / 1e6:.0f} million characters, {package.name}")
        total = 0
        for document in mine_held:
            total += len(document.text)
            if total <= HELD_CAP:
                held.append(document)
    pool.terminate()
    report = {
        "documents": len(train),
        "held_out_documents": len(held),
        "reserved_documents": num_written,
        "dropped": keep.dropped,
        "refused_licences": refused,
        "humaneval": _overlap(keep),
        "packages": packages,
    }
    held += reserved[:num_written]
    for name, is_wanted in (("held", False), ("held_compiled", True)):
        some = [d for d in held if (language_of(d.path) in COMPILED_POOL_OF) == is_wanted]
        write_documents(args.out / f"{name}.bin.zst", some)
    (args.out / "collected.json").write_text(json.dumps(report, indent=1))
    write_documents(args.out / "collected.bin", train)


# What the workers need, handed to them by the fork.
_shared: list[tuple[Contamination, dict[str, str]]] = []


def _work(read: Reader) -> tuple[Package, ExaminedFiles] | None:
    return examine_package(read, *_shared[0])


def _overlap(keep: Filter) -> dict[str, Any]:
    """Return how much of HumanEval the kept files hold."""
    grams = keep.contamination.grams
    return {
        "10-grams": len(grams),
        "telling": len(keep.contamination.telling),
        "documents_with_a_10-gram": keep.num_with_gram,
        "distinct_10-grams_found": len(keep.grams_found),
        "most_common": [(grams[h], n) for h, n in keep.grams_found.most_common(12)],
    }


def select(args: argparse.Namespace, sources: dict[str, Any]) -> None:
    """Cut collected.bin to the budgets, pack it in parts and by pool; write manifest.json."""
    manifest = json.loads((args.out / "collected.json").read_text())
    python: list[Document] = []
    script: list[Document] = []
    compiled: dict[str, list[Document]] = {pool: [] for pool in COMPILED_POOL_OF.values()}
    for document in load_documents(args.out / "collected.bin"):
        if pool := COMPILED_POOL_OF.get(language_of(document.path)):
            compiled[pool].append(document)
        elif document.path.endswith(".py"):
            python.append(document)
        elif not COMPILED_JS.search(document.text):
            script.append(document._replace(text=SOURCE_MAP.sub("", document.text)))
    kept: list[Document] = []
    for group, budget, usual in (
        (python, args.python_mb, "cap_default_mb"),
        (script, args.script_mb, "cap_npm_mb"),
    ):
        weight = functools.partial(cap_weight, sources.get("cap_mb", {}), sources[usual])
        kept += fit_budget(group, budget * 1e6, weight)
    usual = sources.get("debian", {}).get("cap_mb", 1)
    weight = functools.partial(cap_weight, sources.get("cap_mb", {}), usual)
    pools = {
        pool: fit_budget(group, args.compiled_mb * 1e6, weight) for pool, group in compiled.items()
    }
    for path, million in args.add:
        kept += fit_budget(load_documents(path), million * 1e6, weight)
    trained = dict.fromkeys([*kept, *(d for group in pools.values() for d in group)])
    languages: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    for document in trained:
        languages[language_of(document.path)] += len(document.text)
        sizes[document.package] += len(document.text)
    for package, entry in manifest["packages"].items():
        entry["trained_characters"] = sizes[package]
    manifest |= {"trained_documents": len(trained), "trained_characters": languages}
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1))
    print(json.dumps({key: value for key, value in manifest.items() if key != "packages"}))
    for pool, group in pools.items():
        write_documents(args.out / f"{pool}.bin.zst", group)
    if args.only_debian:
        return
    parts = split_packages(kept, args.parts)
    for number, part in enumerate(tqdm(parts, "packing", unit=" parts")):
        old = previous_documents(args.downloads / "previous", part)
        write_documents(args.out / f"train_{number}.bin.zst", part + old)


def _parse_added(text: str) -> tuple[Path, float]:
    """Parse "FILE=MB".

    Raises:
        ValueError: it is no such thing.
    """
    path, _, million = text.rpartition("=")
    return Path(path), float(million)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m training.collect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("downloads", type=Path, help="folder that fetch_sources filled")
    add("out", type=Path)
    add("--sources", type=Path, default=Path(__file__).with_name("sources.json"))
    add("--reserved", type=Path, help="reserved packages (DOWNLOADS/reserved)")
    add("--repositories", type=Path, help="git directories (DOWNLOADS/repositories, if there)")
    add("--humaneval", type=Path, help="HumanEval-SingleLineInfilling.jsonl.gz (in DOWNLOADS)")
    add("--python-mb", type=float, default=1450, help="million characters of Python to keep")
    add("--script-mb", type=float, default=600, help="the same for JavaScript and TypeScript")
    add("--compiled-mb", type=float, default=150, help="the same for each of the pools of Debian's")
    add("--add", type=_parse_added, nargs="+", default=[], metavar="FILE=MB", help=_ADD)
    add("--only-debian", action="store_true", help="only Debian's packages, no train_N.bin.zst")
    shares = [0.06, *6 * [0.94 / 6]]
    add("--parts", type=float, nargs="+", default=shares, help="share of each part")
    add("--workers", type=int, default=os.cpu_count())
    add("--limit", type=int, help="stop after this many packages (for a test)")
    args = parser.parse_args(argv)
    args.reserved = args.reserved or args.downloads / "reserved"
    args.humaneval = args.humaneval or args.downloads / "HumanEval-SingleLineInfilling.jsonl.gz"
    if args.repositories is None and (args.downloads / "repositories").is_dir():
        args.repositories = args.downloads / "repositories"
    needed = [args.reserved / kind for kind in (["debian"] if args.only_debian else ["whl", "npm"])]
    for path in (args.humaneval, *needed):
        if not path.exists():
            parser.error(f"{path} is not there; run training.fetch_sources")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    sources = json.loads(args.sources.read_text())
    if not (args.out / "collected.bin").exists():
        collect(args, sources)
    select(args, sources)


if __name__ == "__main__":
    main()
