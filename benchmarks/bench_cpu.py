"""Prefill and decode on the CPU, against llama.cpp on the same weights; alone on the machine.

Every contender is a process that works only when it is its turn; rounds alternate between all.
Prefill is a cold prompt up to its first token, decode the mean of the steps that follow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import harness
import numpy as np
from cpu import cpu_peer

from keyturn.engine.files.catalog import resolve

# Name to KEYTURN_KERNELS and dtype: dense weights twice, and what the product chooses by itself.
OWN = {
    "fp32": ("reference", "float32"),
    "bf16": ("reference", "bfloat16"),
    "4-bit": ("auto", "auto"),
}
PRODUCT = "4-bit"
# Name to options of `cpu_peer`; the faster of them is the one to beat.
PEERS = {"llama.cpp Q4_1": (), "llama.cpp Q8_0": ("--q8",)}
FOLDER = Path(__file__).parent

Figures = dict[str, Any]


class Contender:
    """A process that measures itself when asked.

    Attributes:
        about: what it said of itself when it was ready.
    """

    def __init__(self, name: str, command: Sequence[str], **environment: str) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended instead.
        """
        self._name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )
        self.about = self._answer()

    def run(self, token_ids: list[int], num_decoded: int) -> dict[str, Any]:
        """Prefill and decode once; returns what `cpu_peer.serve_lines` says."""
        assert self._process.stdin
        task = {"token_ids": token_ids, "num_decoded": num_decoded}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it: a process without input has nothing to do."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        told = self._errors.read().decode(errors="replace").strip()[-2000:]
        raise RuntimeError(f"{self._name} ended with status {status}:\n{told}")


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--peer-python", help="an interpreter that has xllamacpp and gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--decoded", type=int, default=32, help="tokens generated in a round")
    parser.add_argument("--variants", nargs="+", choices=[*OWN], default=[*OWN])
    parser.set_defaults(threads=2)
    args = parser.parse_args()
    if args.peer_python is None:
        print(f"no --peer-python, so no peer; to get one:\n  {cpu_peer.INSTALL}", flush=True)
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name, contender in started(args):
            stack.callback(contender.close)
            contenders[name] = contender
            told = ", ".join(f"{key} {value}" for key, value in contender.about.items())
            print(f"{name}: {told}", flush=True)
        runs = measured(args, contenders)
        about = {name: contender.about for name, contender in contenders.items()}
    header = ["contender", "context", "prefill tok/s", "decode ms/token p50", "p20", "p80", "p95"]
    columns = ("contender", "context", "prefill_tokens_per_s")
    harness.table(
        header, [[*(run[key] for key in columns), *_quantiles(run["step_ms"])] for run in runs]
    )
    figures = {"threads": args.threads, "decoded": args.decoded, "about": about, "runs": runs}
    harness.finish("cpu", args, figures, checks(runs, args.contexts))


def started(args: argparse.Namespace) -> Iterator[tuple[str, Contender]]:
    """Start the contenders one after the other."""
    capacity = max(args.contexts) + args.decoded + 1
    shared = ["--threads", str(args.threads), "--capacity", str(capacity)]
    for name in args.variants:
        kernels, dtype = OWN[name]
        command = [sys.executable, str(FOLDER / "cpu" / "cpu_own.py"), args.model, "--dtype", dtype]
        yield name, Contender(name, [*command, *shared], KEYTURN_KERNELS=kernels)
    if args.peer_python is None:
        return
    for name, options in PEERS.items():
        command = [args.peer_python, str(FOLDER / "cpu" / "cpu_peer.py"), str(resolve(args.model))]
        try:
            yield name, Contender(name, [*command, *options, *shared])
        except (OSError, RuntimeError) as error:
            sys.exit(f"{error}\nto get a peer:\n  {cpu_peer.INSTALL}")


def measured(args: argparse.Namespace, contenders: dict[str, Contender]) -> list[Figures]:
    """Alternate; return what each contender took at each context, after a round of warm-up."""
    random = np.random.default_rng(args.seed)
    vocab_size = contenders[args.variants[0]].about["vocab_size"]
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for number in range(args.rounds + 1):
        for context in args.contexts:
            # The lowest are special tokens as a rule.
            token_ids = random.integers(vocab_size // 100, vocab_size, context).tolist()
            for name, contender in contenders.items():
                one = contender.run(token_ids, args.decoded)
                if number:
                    found.setdefault((context, name), []).append(one)
    runs = []
    for (context, name), times in found.items():
        prefill_s = [one["prefill_s"] for one in times]
        run = {"contender": name, "context": context, "prefill_s": prefill_s}
        run["prefill_tokens_per_s"] = context / float(np.median(prefill_s))
        runs.append(run | {"step_ms": [one["step_ms"] for one in times]})
    return runs


def checks(runs: list[Figures], contexts: list[int]) -> list[dict[str, Any]]:
    """Hold what the product chooses against the peer's best, at each context and in each kind."""
    found = []
    for context in contexts:
        here = {run["contender"]: run for run in runs if run["context"] == context}
        own, peers = here.get(PRODUCT), [here[name] for name in PEERS if name in here]
        if own is None or not peers:
            continue
        best = max(run["prefill_tokens_per_s"] for run in peers)
        times = own["prefill_tokens_per_s"] / best
        found.append(harness.check(f"prefill of {context} over the peer", times, "times", ">= 2"))
        best = min(float(np.median(run["step_ms"])) for run in peers)
        times = best / float(np.median(own["step_ms"]))
        found.append(harness.check(f"decode after {context} over the peer", times, "times", ">= 1"))
    return found


def _quantiles(values: list[float]) -> list[float]:
    return [float(np.quantile(values, at)) for at in (0.5, 0.2, 0.8, 0.95)]


if __name__ == "__main__":
    main()
