#!/usr/bin/env python3
r"""Filter downloaded packages into documents: deduplicated, decontaminated, split, packed.

Writes to OUT: collected.bin (everything that passed; made once), train_N.bin.zst (what the
budgets keep, in parts), held.bin.zst (held-out files and reserved packages), manifest.json (per
package: version, licence, files, characters; what was dropped and why; overlap with HumanEval). A
.bin file is a run of records \\x00 package \\x02 path \\x01 text.
"""

import argparse
import collections
import functools
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import corpus
import zstandard

HELD_CAP = 60_000  # characters of held-out files per package, so that a few large ones do not rule
# level 9 with long matches packs 46 MB/s to 17 %; LZMA packs 2.5 MB/s to 14 %
ZSTD = zstandard.ZstdCompressionParameters.from_level(9, window_log=29, enable_ldm=True)


def load_documents(path: Path | str) -> list[tuple[str, str, str]]:
    """Return the (package, path, text) records of a .bin or .bin.zst file."""
    with open(path, "rb") as file:
        if str(path).endswith(".zst"):
            unpacker = zstandard.ZstdDecompressor(max_window_size=2**31)
            data = unpacker.stream_reader(file).read()
        else:
            data = file.read()
    records = data.decode("utf-8").split("\x00")[1:]
    documents = []
    for record in records:
        head, text = record.split("\x01", 1)
        documents.append((*head.split("\x02"), text))
    return documents


def join_records(documents: list[tuple[str, str, str]]) -> bytes:
    """Return documents as the bytes of a .bin file."""
    return "".join(f"\x00{p}\x02{n}\x01{t}" for p, n, t in documents).encode()


def write_documents(path: Path, documents: list[tuple[str, str, str]]) -> None:
    """Write records to PATH (.bin.zst), and say how small they became."""
    raw = join_records(documents)
    packed = zstandard.ZstdCompressor(compression_params=ZSTD).compress(raw)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(packed)
    temporary.rename(path)
    print(
        f"{path.name}: {len(documents)} documents,",
        f"{len(raw) / 1e6:.1f} -> {len(packed) / 1e6:.1f} MB",
        flush=True,
    )


def collect_package(package: corpus.Package, keep: corpus.Filter) -> tuple[list, list, dict]:
    """Return the training and the held-out documents of one package, and its manifest entry."""
    train, held = [], []
    size = collections.Counter()
    package.files.sort(key=lambda f: corpus.source_order(f[0]))
    for path, data in package.files:
        if corpus.SKIP_PATH.search(path.removeprefix(f"npm/{package.name.removeprefix('npm:')}/")):
            keep.dropped["path"] += 1
        elif not package.program_set and corpus.half_of_tests(path):
            keep.dropped["test file (55 % left out)"] += 1
        elif size["characters"] > package.cap:
            keep.dropped["package cap"] += 1
        elif text := keep.keep(path, data, package.program_set):
            hold = corpus.held_out(path)
            (held if hold else train).append((package.name, path, text))
            size["held_out_files" if hold else "files"] += 1
            size["held_out_characters" if hold else "characters"] += len(text)
    return train, held, {"version": package.version, "licence": package.licence, **size}


def reserved_documents(folder: Path) -> list[tuple[str, str, str]]:
    """Return the documents of the packages reserved for evaluation (no builds, no tests)."""
    documents = []
    packages = [corpus.read_wheel(p) for p in sorted((folder / "whl").glob("*.whl"))]
    packages += [corpus.read_tarball(p) for p in sorted((folder / "npm").glob("*.tgz"))]
    for package in packages:
        for path, data in sorted(package.files):
            if (
                path.endswith((".d.ts", ".d.cts", ".d.mts", ".cjs"))
                or "/locales/" in path
                or ".min." in path
            ):
                continue
            if package.name == "npm:zod" and "/src/" not in path or b"\x00" in data:
                continue
            text = corpus.strip_licence(data.decode("utf-8").replace("\r", "")).strip("\n") + "\n"
            if max(map(len, text.split("\n"))) <= 600:
                documents.append(("reserved:" + package.name, path, text))
    return documents


def split_packages(documents: list, shares: list[float]) -> list[list]:
    """Deal whole packages out to parts of the given shares, the largest first; keep the order."""
    sizes = collections.Counter()
    for package, _, text in documents:
        sizes[package] += len(text)
    filled, part_of = [0.0] * len(shares), {}
    for package, size in sizes.most_common():
        part_of[package] = filled.index(min(filled))
        filled[part_of[package]] += size / shares[part_of[package]]
    parts = [[] for _ in shares]
    for document in documents:
        parts[part_of[document[0]]].append(document)
    return parts


def fit_budget(documents: list, budget: float, weight: Callable[[str], float]) -> list:
    """Cut the largest packages so that `budget` characters remain.

    Each may have `weight` times the same cap. Within a package test files go first, then files at
    random (by hash); the order is kept.
    """
    packages = collections.defaultdict(list)
    for document in documents:
        packages[document[0]].append(document)
    sizes = {name: sum(len(d[2]) for d in part) for name, part in packages.items()}
    low, high = 0.0, 1e9
    for _ in range(60):
        cap = (low + high) / 2
        fits = sum(min(size, cap * weight(name)) for name, size in sizes.items()) <= budget
        low, high = (cap, high) if fits else (low, cap)
    kept = []
    for name, part in packages.items():
        room, chosen = low * weight(name), set()
        for i in sorted(
            range(len(part)),
            key=lambda i: (
                bool(corpus.TEST_PATH.search(part[i][1])),
                corpus.source_order(part[i][1]),
            ),
        ):
            if room > 0:
                room -= len(part[i][2])
                chosen.add(i)
        kept += [document for i, document in enumerate(part) if i in chosen]
    return kept


def collect(args: argparse.Namespace, sources: dict) -> None:
    """Filter all packages into collected.bin and held.bin.zst; report in collected.json."""
    started = time.time()
    with gzip.open(args.humaneval, "rt") as file:
        contamination = corpus.Contamination([json.loads(line) for line in file])
    keep = corpus.Filter(contamination)
    reserved = reserved_documents(args.reserved)
    for *_, text in reserved:
        keep.reserve(text)
    train, held, packages, refused = [], [], {}, {}
    for number, package in enumerate(
        corpus.read_packages(args.downloads, sources, args.repositories)
    ):
        licence = sources.get("licences", {}).get(package.name, package.licence)
        if corpus.BAD_LICENCE.search(licence) or not corpus.GOOD_LICENCE.search(licence):
            refused[package.name] = licence
            continue
        package.licence = licence
        mine, mine_held, packages[package.name] = collect_package(package, keep)
        mine.sort(key=lambda d: d[1])
        train += mine
        total = 0
        for document in mine_held:
            total += len(document[2])
            if total <= HELD_CAP:
                held.append(document)
        if number % 25 == 0:
            size = sum(len(d[2]) for d in train) / 1e6
            print(
                f"{number} packages, {size:.0f} MB, {time.time() - started:.0f} s",
                package.name,
                flush=True,
            )
        if args.limit and number >= args.limit:
            break
    found = keep.overlap["grams"]
    report = {
        "documents": len(train),
        "held_out_documents": len(held),
        "reserved_documents": len(reserved),
        "dropped": keep.dropped,
        "refused_licences": refused,
        "humaneval": {
            "10-grams": len(contamination.grams),
            "telling": len(contamination.telling),
            "documents_with_a_10-gram": keep.overlap["documents"]["with a 10-gram"],
            "distinct_10-grams_found": len(found),
            "most_common": [(contamination.grams[h], n) for h, n in found.most_common(12)],
        },
        "packages": packages,
    }
    write_documents(args.out / "held.bin.zst", held + reserved)
    (args.out / "collected.json").write_text(json.dumps(report, indent=1))
    (args.out / "collected.bin.tmp").write_bytes(join_records(train))
    (args.out / "collected.bin.tmp").rename(args.out / "collected.bin")
    print(f"collected in {time.time() - started:.0f} s", flush=True)


def cap_weight(caps: dict[str, float], usual: float, package: str) -> float:
    """Return how many times the usual cap a package may have; program collections stay whole."""
    return 20 if package.startswith("algo:") else caps.get(package, usual) / usual


def select(args: argparse.Namespace, sources: dict) -> None:
    """Cut collected.bin to the budgets, pack it into train_N.bin.zst; write manifest.json."""
    manifest = json.loads((args.out / "collected.json").read_text())
    caps, kept = sources.get("cap_mb", {}), []
    groups = [[], []]
    for package, path, text in load_documents(args.out / "collected.bin"):
        if path.endswith(".py"):
            groups[0].append((package, path, text))
        elif not corpus.COMPILED_JS.search(text):
            groups[1].append((package, path, corpus.SOURCE_MAP.sub("", text)))
    budgets = (args.python_mb, "cap_default_mb"), (args.script_mb, "cap_npm_mb")
    for group, (budget, default) in zip(groups, budgets, strict=False):
        kept += fit_budget(
            group, budget * 1e6, functools.partial(cap_weight, caps, sources[default])
        )
    languages, sizes = collections.Counter(), collections.Counter()
    for package, path, text in kept:
        languages[corpus.LANGUAGES["." + path.rsplit(".", 1)[-1]]] += len(text)
        sizes[package] += len(text)
    for package, entry in manifest["packages"].items():
        entry["trained_characters"] = sizes[package]
    manifest |= {"trained_documents": len(kept), "trained_characters": languages}
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1))
    print(json.dumps({k: v for k, v in manifest.items() if k != "packages"}), flush=True)
    for number, part in enumerate(split_packages(kept, args.parts)):
        write_documents(args.out / f"train_{number}.bin.zst", part)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "downloads", type=Path, help="folder with whl/ and npm/ of fetch_sources.py"
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--sources", type=Path, default=Path(__file__).with_name("sources.json"))
    parser.add_argument(
        "--reserved", type=Path, required=True, help="folder of the reserved packages"
    )
    parser.add_argument(
        "--humaneval", type=Path, required=True, help="HumanEval-SingleLineInfilling.jsonl.gz"
    )
    parser.add_argument(
        "--repositories", type=Path, help="folder of git directories OWNER+NAME/repo"
    )
    parser.add_argument(
        "--python-mb", type=float, default=900, help="characters of Python to keep, in millions"
    )
    parser.add_argument(
        "--script-mb", type=float, default=300, help="the same for JavaScript and TypeScript"
    )
    parser.add_argument(
        "--parts",
        type=float,
        nargs="+",
        default=[0.1, 0.225, 0.225, 0.225, 0.225],
        help="share of each part",
    )
    parser.add_argument("--limit", type=int, help="stop after this many packages (for a test)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sources = json.loads(args.sources.read_text())
    if not (args.out / "collected.bin").exists():
        collect(args, sources)
    select(args, sources)


if __name__ == "__main__":
    main()
