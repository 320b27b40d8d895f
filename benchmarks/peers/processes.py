"""The options of benchmarks that have llama.cpp's server beside us, and that server's process."""

from __future__ import annotations

import argparse
import sys

import harness
from bench_cpu import FOLDER, Contender
from cpu import cpu_peer

from keyturn.engine.files.catalog import resolve
from keyturn.engine.loaded_model import Model


def parser(about: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the common options, two threads by default."""
    made = harness.parser(about)
    add = made.add_argument
    add("--peer-python", help="an interpreter that has xllamacpp and gguf")
    add("--rounds", type=int, default=rounds)
    add("--context", type=int, default=2048, help="tokens of the window")
    add("--reuse", nargs="+", type=int, default=[0, 256], help="n_cache_reuse of the peer")
    add("--cache-ram", type=int, default=1024, help="MiB of the peer's host-memory cache")
    made.set_defaults(threads=2)
    return made


def say_if_alone(args: argparse.Namespace) -> None:
    """Say how to get a peer if there is none."""
    if args.peer_python is None:
        print(f"no --peer-python, so no peer; to get one:\n  {cpu_peer.INSTALL}", flush=True)


def started(args: argparse.Namespace, model: Model, name: str, reuse: int, *more: str) -> Contender:
    """Start llama.cpp's server with our model.

    Args:
        args: as `parser` made them.
        model: ours, which says how many rows the server's cache needs.
        name: of the contender.
        reuse: `n_cache_reuse`.
        more: further flags of `cpu_peer.py`.

    Raises:
        SystemExit: it does not start.
    """
    command = [args.peer_python, str(FOLDER / "cpu" / "cpu_peer.py"), str(resolve(args.model))]
    command += ["--keep", "--reuse", str(reuse), "--cache-ram", str(args.cache_ram)]
    command += ["--threads", str(args.threads), "--capacity", str(model.capacity), *more]
    try:
        return Contender(name, command)
    except (OSError, RuntimeError) as error:
        sys.exit(f"{error}\nto get a peer:\n  {cpu_peer.INSTALL}")
