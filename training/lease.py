#!/usr/bin/env python3
r"""Train on a rented machine that goes back at a fixed time, as files arrive there.

    python3 -m training.lease start WORK --minutes 22 --parts 7      returns at once
    python3 -m training.lease status WORK --wait 540                 until it is done, or so long
    python3 -m training.lease bring WORK OUT --first 0 --count 4     pieces of the new file

WORK is what `carry receive` fills: wheels, the weights (.gguf), held.bin.zst, train_0.bin.zst, ...
Documents become shards as they come, and training begins with the first of them on all GPUs. Its
rate warms up and then falls in a line to the end of the time, whenever that is: WORK/deadline, in
unix time, may be written anew. Then the file that the product ships is made and cut into pieces
that any number of commands may bring back; `cat` joins them. If training does not end by itself
it is stopped, and the last checkpoint is taken. Only the standard library is used here; what it
starts finds the wheels on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

PIECE_MB = 15.9
DEADLINE, DONE = "deadline", "done.json"
_GRACE_S = 45  # beyond the deadline, for the last checkpoint
_POLL_S = 0.5


class Lease:
    """What the machine is to do, as `start` wrote it down."""

    def __init__(self, work: Path) -> None:
        """Read WORK/lease.json."""
        self.work = work.resolve()
        self.settings = json.loads((work / "lease.json").read_text())
        self._log = (work / "run.log").open("a")
        place = [str(self.work / "site"), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        self._environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, place)))

    @property
    def left_s(self) -> float:
        """Seconds until training is to end."""
        return float((self.work / DEADLINE).read_text()) - time.time()

    def run(self) -> None:
        """Prepare, train, export; leave DONE behind, whatever happens."""
        done: dict[str, object] = {"began": time.time()}
        threading.Thread(target=self.prepare, daemon=True).start()
        try:
            self._train()
            done |= self._export("final.pt")
        except (subprocess.SubprocessError, OSError) as error:
            self.say(f"training ended with {error!r}")
            try:
                done |= self._export("checkpoint.pt")
            except (subprocess.SubprocessError, OSError) as second:
                done["error"] = f"{error!r}, then {second!r}"
        done["seconds"] = round(time.time() - float(str(done["began"])), 1)
        (self.work / DONE).write_text(json.dumps(done))

    def say(self, text: str) -> None:
        """Add a line to WORK/run.log."""
        self._log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._log.flush()

    def wait_for(self, path: Path) -> Path:
        """Return a file when it is there.

        Raises:
            FileNotFoundError: it did not come before the deadline.
        """
        while not path.exists():
            if self.left_s <= 0:
                raise FileNotFoundError(f"{path} did not come in time")
            time.sleep(_POLL_S)
        return path

    def execute(self, *command: str, timeout: float | None = None) -> None:
        """Run one of the recipe's scripts with its output in WORK/NAME.log.

        Raises:
            CalledProcessError: it failed.
            TimeoutExpired: it was stopped after `timeout` seconds.
        """
        began = time.time()
        self.say(" ".join(command))
        with (self.work / f"{command[0]}.log").open("ab") as log:
            module = [sys.executable, "-m", f"training.{command[0]}", *command[1:]]
            if command[0] == "train" and self.settings["gpus"] > 1:
                count = str(self.settings["gpus"])
                torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", count]
                module[2:3] = [*torchrun, "-m", "training.train"]
            subprocess.run(
                module, env=self._environment, stdout=log, stderr=log, timeout=timeout, check=True
            )
        self.say(f"{command[0]}: {time.time() - began:.0f} s")

    def prepare(self) -> None:
        """Turn documents into shards as they come: each part is a pass, then all parts anew."""
        settings = self.settings
        shards, parts = self.work / "shards", range(settings["parts"])
        workers = ["--workers", str(settings["workers"])]
        try:
            held = self.wait_for(self.work / "held.bin.zst")
            common = [settings["tokenizer"], str(self.work / "held"), str(held)]
            units = ["--units", str(settings["held_units"])]
            self.execute("prepare", *common, "--passes", "1", "--natural", *units, *workers)
            for number in [*parts, *(settings["parts"] + part for part in parts)]:
                part = number % settings["parts"]
                documents = self.wait_for(self.work / f"train_{part}.bin.zst")
                common = [settings["tokenizer"], str(shards), str(documents)]
                units = ["--units", str(settings["units"])]
                more = ["--passes", "1", "--first-pass", str(number), *settings["prepare"]]
                more += settings["late"] if part >= settings["parts"] // 2 else []
                self.execute("prepare", *common, *more, *units, *workers)
        except (subprocess.SubprocessError, OSError) as error:
            self.say(f"preparing ended with {error!r}")

    def _train(self) -> None:
        settings = self.settings
        weights = self.wait_for(self.work / settings["weights"])
        self.wait_for(self.work / "held" / f"p00_u{settings['held_units'] - 1:03d}.npz")
        self.wait_for(self.work / "shards" / "p00_u000.npz")
        passes = ",".join(f"{n}:{settings['units']}" for n in range(2 * settings["parts"]))
        self.execute(
            *("train", "--weights", str(weights), "--shards", str(self.work / "shards")),
            *("--passes", passes, "--held", str(self.work / "held")),
            *("--out", str(self.work / "out"), "--resume", "--minutes", "600"),
            *("--deadline-file", str(self.work / DEADLINE), "--warm", "0.02", "--level", "0.02"),
            *settings["train"],
            timeout=max(1.0, self.left_s + _GRACE_S),
        )

    def _export(self, name: str) -> dict[str, object]:
        """Make the GGUF file of a checkpoint, and its pieces; return what is to be known."""
        base, back = self.work / self.settings["weights"], self.work / "back"
        back.mkdir(exist_ok=True)
        target = back / "keyturn.gguf"
        self.execute("export", str(self.work / "out" / name), str(target), "--base", str(base))
        data, size = target.read_bytes(), int(PIECE_MB * 2**20)
        for old in back.glob("keyturn.gguf.[0-9]*"):
            old.unlink()
        for start in range(0, len(data), size):
            piece = back / f"{target.name}.{start // size:03d}"
            piece.write_bytes(data[start : start + size])
        told = (self.work / "export.log").read_text().strip().splitlines()[-1]
        return {"from": name, "pieces": -(-len(data) // size), "export": told}


def start(work: Path, args: argparse.Namespace) -> None:
    """Write down what is to be done and leave a process behind that does it."""
    work.mkdir(parents=True, exist_ok=True)
    packages = work / "site" / "keyturn"
    packages.mkdir(parents=True, exist_ok=True)
    for layer in ("server", "engine", "kernels"):
        link = packages / layer
        if not link.exists():
            link.symlink_to(Path.cwd() / layer)
    named = ("weights", "tokenizer", "parts", "units", "held_units", "gpus", "workers")
    settings = {name: getattr(args, name) for name in named}
    settings |= {name: getattr(args, name).split() for name in ("train", "prepare", "late")}
    (work / "lease.json").write_text(json.dumps(settings))
    (work / DEADLINE).write_text(str(time.time() + 60 * args.minutes))
    with (work / "start.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.lease", "run", str(work)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # it outlives this command
        )
    (work / "pid").write_text(str(process.pid))  # of its session: kill -- -PID ends all of it


def status(work: Path, wait_s: float) -> None:
    """Print how far it is, when it is done or after so many seconds."""
    end = time.time() + wait_s
    while not (work / DONE).exists() and time.time() < end:
        time.sleep(_POLL_S)
    for name in ("run.log", "out/log.jsonl"):
        path = work / name
        for line in path.read_text().splitlines()[-6:] if path.exists() else []:
            print(line)
    left = float((work / DEADLINE).read_text()) - time.time()
    done = (work / DONE).read_text() if (work / DONE).exists() else "null"
    print(json.dumps({"left_s": round(left), "done": json.loads(done)}))


def bring(work: Path, out: Path, first: int, count: int) -> None:
    """Copy some pieces, and with the first of them the logs.

    Raises:
        SystemExit: there is nothing to bring yet.
    """
    pieces = sorted((work / "back").glob("keyturn.gguf.[0-9]*"))
    if not pieces:
        raise SystemExit(f"no pieces in {work / 'back'} yet; see {work / 'run.log'}")
    chosen = pieces[first : first + count]
    if first == 0:
        chosen += [work / name for name in (DONE, "run.log", "out/log.jsonl")]
    for path in chosen:
        if path.exists():
            shutil.copy(path, out)
    print(json.dumps({"brought": [path.name for path in chosen], "pieces": len(pieces)}))


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.lease",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    starting, running, looking, bringing = (
        actions.add_parser(name) for name in ("start", "run", "status", "bring")
    )
    for action in (starting, running, looking, bringing):
        action.add_argument("work", type=Path)
    add = starting.add_argument
    cores = os.cpu_count() or 1
    add("--minutes", type=float, required=True, help="until training ends; keep some for the way")
    add("--weights", default="keyturn-135m-q4_1.gguf", help="file in WORK to train on from")
    add("--tokenizer", default="engine/embedded/tokenizer.json")
    add("--parts", type=int, default=7, help="train_0.bin.zst, train_1.bin.zst, ...")
    add("--units", type=int, default=32, help="shards of a part")
    add("--held-units", type=int, default=8, help="shards of the held-out documents")
    add("--gpus", type=int, default=2)
    add("--workers", type=int, default=max(1, cores - 6), help="processes that prepare")
    add("--train", default="", help="further options of training.train, as one argument")
    add("--prepare", default="", help="further options of training.prepare, likewise")
    add("--late", default="", help="more of them, for the second half of the parts")
    looking.add_argument("--wait", type=float, default=0, help="seconds")
    bringing.add_argument("out", type=Path)
    bringing.add_argument("--first", type=int, default=0)
    bringing.add_argument("--count", type=int, default=4)
    args = parser.parse_args(argv)
    if args.action == "start":
        start(args.work, args)
    elif args.action == "run":
        Lease(args.work).run()
    elif args.action == "status":
        status(args.work, args.wait)
    else:
        bring(args.work, args.out, args.first, args.count)


if __name__ == "__main__":
    main()
