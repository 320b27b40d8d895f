#!/usr/bin/env python3
r"""Carry files to a machine that takes one small folder with each command, and back from it.

    python -m training.carry pack loads FILE ... --room-mb 56
    python3 -m training.carry receive loads/00 WORK       there, once for each folder, in any order

`pack` cuts the files, in their order, into folders loads/00, loads/01, ... of at most that size, so
that a load is always full and the first files arrive first. `receive` puts together what has come:
WORK/NAME exists from the moment that all of it is there and its hash is right. Wheels are unpacked
into WORK/site, which is to be on PYTHONPATH. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

INDEX = "parts.json"  # of a load
_MB = 2**20


def pack(files: list[Path], out: Path, room_mb: float) -> list[Path]:
    """Cut files into folders OUT/00, OUT/01, ...; return the folders.

    Raises:
        ValueError: two files have one name.
    """
    if len({path.name for path in files}) < len(files):
        raise ValueError("two files have the same name; rename one, all arrive in one folder")
    shutil.rmtree(out, ignore_errors=True)
    loads: list[Path] = []
    parts: list[dict[str, object]] = []
    room = 0
    for path in files:
        data = path.read_bytes()
        about = {"name": path.name, "total": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        at = 0
        while at < len(data) or not data and at == 0:
            if room <= 0:
                parts, room = [], int(room_mb * _MB)
                loads.append(out / f"{len(loads):02d}")
                loads[-1].mkdir(parents=True)
            piece = data[at : at + room]
            (loads[-1] / f"{len(parts):02d}").write_bytes(piece)
            parts.append({**about, "offset": at, "size": len(piece)})
            (loads[-1] / INDEX).write_text(json.dumps(parts))
            at += max(1, len(piece))
            room -= len(piece)
    return loads


def receive(load: Path, work: Path) -> list[Path]:
    """Take a load in; return the files that are whole now.

    Raises:
        ValueError: a whole file has another hash; it is to be carried again.
    """
    work.mkdir(parents=True, exist_ok=True)
    whole = []
    for number, part in enumerate(json.loads((load / INDEX).read_text())):
        target = work / part["name"]
        if target.exists() and _hash(target) == part["sha256"]:
            continue
        growing, record = (target.with_name(f".{target.name}.{end}") for end in ("part", "json"))
        growing.touch()
        with growing.open("r+b") as file:
            file.seek(part["offset"])
            file.write((load / f"{number:02d}").read_bytes())
        have = json.loads(record.read_text()) if record.exists() else {}
        have[str(part["offset"])] = part["size"]
        record.write_text(json.dumps(have))
        if sum(have.values()) < part["total"]:
            continue
        record.unlink()
        if _hash(growing) != part["sha256"]:
            growing.unlink()
            raise ValueError(f"{target.name} came damaged: carry all loads that hold it again")
        growing.rename(target)
        whole.append(target)
        if target.suffix == ".whl":
            with zipfile.ZipFile(target) as wheel:
                wheel.extractall(work / "site")
    return whole


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.carry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    packing = actions.add_parser("pack")
    packing.add_argument("out", type=Path)
    packing.add_argument("files", type=Path, nargs="+", help="the most urgent first")
    packing.add_argument("--room-mb", type=float, default=56, help="MiB a load")
    receiving = actions.add_parser("receive")
    receiving.add_argument("load", type=Path)
    receiving.add_argument("work", type=Path)
    args = parser.parse_args(argv)
    if args.action == "pack":
        loads = pack(args.files, args.out, args.room_mb)
        for load in loads:
            parts = json.loads((load / INDEX).read_text())
            size = sum(part["size"] for part in parts) / _MB
            print(f"{load}: {size:.1f} MiB of {', '.join(part['name'] for part in parts)}")
    else:
        whole = receive(args.load, args.work)
        print(json.dumps({"whole": [path.name for path in whole]}))


if __name__ == "__main__":
    main()
