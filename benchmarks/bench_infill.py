"""After an edit 1,000 tokens above the cursor: `/infill` of ours and llama.cpp's server, same file.

Both are servers in processes of their own and are asked over HTTP, by turns, for the same place in
the same text, which fills the model's window; between two answers is the pause that a person makes.
llama.cpp gets its `/infill`, and the prompt in our order (suffix first, `--spm-infill` there) as
token ids, each with and without its reuse of shifted chunks, and its host-memory cache of old
prompts. Every edit inserts another line, so that no cache has seen the text; then it is undone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
from peers import processes
from peers.sides import OWN, REST_S
from peers.steps import place

from keyturn.engine.engine import Engine
from keyturn.engine.loaded_model import Model
from keyturn.engine.prompt.growing_window import PromptEncoder
from keyturn.engine.replay.scoring import percentile
from keyturn.engine.wire.address import at_socket
from keyturn.server.engine_link import look
from keyturn.server.settings import Settings

LINE = "    value = convert(value, {})\n"
EDIT, UNDO = "a line inserted above", "undone"


class Answer(NamedTuple):
    """What one request took, in ms by the client's clock, and tokens computed of how many."""

    first_ms: float
    whole_ms: float
    num_redone: int
    num_prompt: int
    num_decoded: int


# Asks for a completion at a cursor in a text.
Ask = Callable[[str, int], Answer]


def main() -> None:
    """Run, print, and save if asked to."""
    args = _arguments()
    settings = Settings(num_threads=args.threads, window_tokens=args.context)
    model = Engine(settings.engine_config()).load(args.model)
    text, cursor, above = place(model, args.context, args.distance)
    takes: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        sides: dict[str, Ask] = {OWN: stack.enter_context(own_server(args))}
        if args.peer_python is not None:
            for reuse in args.reuse:
                sides |= stack.enter_context(peer_server(args, model, reuse))
        for name, ask in sides.items():
            ask(text, cursor)
            print(f"{name}: has the text", flush=True)
        for number in range(args.rounds):
            line = LINE.format(number)
            edited = text[:above] + line + text[above:]
            for step, now, at in ((EDIT, edited, cursor + len(line)), (UNDO, text, cursor)):
                time.sleep(REST_S)
                for name, ask in sides.items():
                    takes[step, name].append(ask(now, at))
            print(f"round {number + 1} of {args.rounds}", flush=True)
    runs: list[dict[str, Any]] = [
        {"step": step, "contender": name}
        | {field: [getattr(one, field) for one in took] for field in Answer._fields}
        for (step, name), took in takes.items()
    ]
    harness.table(
        ["step", "contender", "prompt", "redone", "first ms p50", "answer ms p50", "p95", "tokens"],
        [_row(run) for run in runs],
    )
    figures = {
        "threads": args.threads,
        "context": args.context,
        "distance": args.distance,
        "decoded": args.decoded,
        "runs": runs,
    }
    harness.finish("infill", args, figures, checks(runs))


def _arguments() -> argparse.Namespace:
    parser = processes.parser(__doc__ or "", rounds=5)
    add = parser.add_argument
    add("--distance", type=int, default=1000, help="tokens from the edit to the cursor")
    add("--decoded", type=int, default=16, help="most tokens of an answer")
    args = parser.parse_args()
    processes.say_if_alone(args)
    return args


@contextlib.contextmanager
def own_server(args: argparse.Namespace) -> Iterator[Ask]:
    """Run `keyturn serve --http` with the default settings and an engine host of its own."""
    command = [sys.executable, "-P", "-m", "keyturn.server", "serve", "--http", "127.0.0.1:0"]
    command += ["--model", args.model, "--threads", str(args.threads)]
    with tempfile.TemporaryDirectory(prefix="kt") as folder:
        env = {**os.environ, "XDG_RUNTIME_DIR": folder}
        env.pop("KEYTURN_TOKEN", None)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=env, text=True)
        assert process.stderr
        try:
            line = process.stderr.readline()
            found = re.search(r"http://\S+", line)
            if found is None:
                sys.exit(f"keyturn serve --http did not start: {line}{process.stderr.read()}")
            yield infill(found[0], args.decoded)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10)
            process.stderr.close()
            for path in Path(folder).glob("keyturn/*.sock"):
                if (status := asyncio.run(look(at_socket(path), 5.0))) is not None:
                    os.kill(status["pid"], signal.SIGTERM)


@contextlib.contextmanager
def peer_server(args: argparse.Namespace, model: Model, reuse: int) -> Iterator[dict[str, Ask]]:
    """Run two of llama.cpp's servers, so that neither prompt drives out the other's cache."""
    with contextlib.ExitStack() as stack:
        addresses = []
        for _ in range(2):
            server = processes.started(args, model, "llama.cpp", reuse)
            stack.callback(server.close)
            addresses.append(server.about["address"])
        yield {
            f"llama.cpp /infill, reuse {reuse}": infill(addresses[0], args.decoded, reuse),
            f"llama.cpp suffix first, reuse {reuse}": suffix_first(
                addresses[1], args.decoded, reuse, model
            ),
        }


def infill(address: str, num_tokens: int, reuse: int = 0) -> Ask:
    """Ask a server's `/infill`."""

    def ask(text: str, cursor: int) -> Answer:
        place = {"input_prefix": text[:cursor], "input_suffix": text[cursor:], "prompt": ""}
        return streamed(f"{address}/infill", place | _limits(num_tokens, reuse))

    return ask


def suffix_first(address: str, num_tokens: int, reuse: int, model: Model) -> Ask:
    """Ask llama.cpp's `/completion` with the token ids of our prompt."""
    encoder = PromptEncoder(
        model.template, model.tokenizer, "spm", model.window_tokens, model.chars_per_token, ""
    )

    def ask(text: str, cursor: int) -> Answer:
        tokens = encoder.encode(text, cursor, cursor).tokens
        prompt = np.concatenate(list(tokens.values())).tolist()
        return streamed(f"{address}/completion", {"prompt": prompt} | _limits(num_tokens, reuse))

    return ask


def _limits(num_tokens: int, reuse: int) -> dict[str, object]:
    # Every answer is as long as it may be: the models of both sides end it at the same token.
    limits = {"n_predict": num_tokens, "temperature": 0, "samplers": ["temperature"]}
    return limits | {"cache_prompt": True, "n_cache_reuse": reuse}


def streamed(url: str, asked: dict[str, object]) -> Answer:
    """Ask for a stream of events, and take the time of the first and the last."""
    body = json.dumps({**asked, "stream": True}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    first_ms, event = 0.0, {}
    start = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: "):
                first_ms = first_ms or (time.perf_counter() - start) * 1e3
                event = json.loads(line.removeprefix(b"data: "))
    whole_ms = (time.perf_counter() - start) * 1e3
    timings = event["timings"]
    num_redone, num_kept = timings["prompt_n"], timings["cache_n"]
    return Answer(first_ms, whole_ms, num_redone, num_redone + num_kept, event["tokens_predicted"])


def checks(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold our answer after an inserted line against the best of the peer's."""
    here = {run["contender"]: run for run in runs if run["step"] == EDIT}
    own = here.pop(OWN, None)
    if own is None or not here:
        return []
    found = []
    for field, name in (("whole_ms", "answer"), ("first_ms", "first token")):
        best = min(float(np.median(run[field])) for run in here.values())
        times = best / float(np.median(own[field]))
        found.append(harness.check(f"{name} of /infill after an edit", times, "times", ">= 5"))
    return found


def _row(run: dict[str, Any]) -> list[object]:
    prompt, redone, first, whole, decoded = (
        float(np.median(run[key]))
        for key in ("num_prompt", "num_redone", "first_ms", "whole_ms", "num_decoded")
    )
    p95 = percentile(run["whole_ms"], 0.95)
    name = f"{run['contender']}"
    return [run["step"], name, round(prompt), round(redone), first, whole, p95, round(decoded)]


if __name__ == "__main__":
    main()
