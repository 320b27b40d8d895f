"""How long a fresh process needs: for help, an answer to `initialize`, a model, a completion."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import harness

from keyturn.engine.replay.scoring import percentile

KEYTURN = str(Path(sys.executable).parent / "keyturn")
PLACE = f"{harness.ROOT / 'examples' / 'intervals.py'}:34:14"
TRACE = harness.ROOT / "examples" / "traces" / "anyio-sockets.jsonl"
PROMPT_CHARS = 1284  # of that file: almost 400 tokens
# Without `import torch`, which is measured apart.
LOAD = """
import json, sys, time
begin = time.perf_counter()
import torch
imported = time.perf_counter()
from keyturn.engine.engine import Engine
from keyturn.server.settings import Settings
Engine(Settings().engine_config()).load(sys.argv[1])
ready = time.perf_counter()
print(json.dumps([imported - begin, ready - imported]))
"""


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    loads: list[tuple[float, float]] = []
    prompt_tokens: set[int] = set()

    def load_s() -> float:
        loads.append(json.loads(output([sys.executable, "-c", LOAD, args.model])))
        return loads[-1][1]

    def wall_s(*command: str) -> float:
        start = time.perf_counter()
        output([KEYTURN, *command])
        return time.perf_counter() - start

    def initialize_s() -> float:
        params = {"processId": None, "rootUri": None, "capabilities": {}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        body = json.dumps(message).encode()
        start = time.perf_counter()
        command = [KEYTURN, "serve", "--stdio"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdin and server.stdout, "started with pipes"
            server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            server.stdin.flush()
            server.stdout.readline()
            seconds = time.perf_counter() - start
            server.kill()  # before `initialized`: no engine host is started
        return seconds

    def first_token_s(place: str) -> float:
        start = time.perf_counter()
        command = ["complete", place, "--max-tokens", "1", "--json", "--model", args.model]
        prompt_tokens.add(json.loads(output([KEYTURN, *command]))["num_prompt_tokens"])
        return time.perf_counter() - start

    with TRACE.open(encoding="utf-8") as trace, tempfile.TemporaryDirectory() as folder:
        text = json.loads(trace.readline())["open"]["text"][:PROMPT_CHARS]
        prompt = Path(folder, "prompt.py")
        prompt.write_text(text, encoding="utf-8")
        place = f"{prompt}:{text.count(chr(10)) + 1}:{len(text) - text.rfind(chr(10)) - 1}"
        times = harness.alternate(
            {
                "keyturn --help": lambda: wall_s("--help"),
                "initialize answered": initialize_s,
                "load the model": load_s,
                "keyturn complete": lambda: wall_s("complete", PLACE, "--model", args.model),
                "first token": lambda: first_token_s(place),
            },
            repeats=args.repeats,
            warm_up=1,
        )
    cold = f"first token of a cold completion, {max(prompt_tokens)} tokens"
    times[cold] = times.pop("first token")
    times["import torch"] = [imported for imported, _ in loads[1:]]
    harness.table(
        ["seconds, fresh processes", "p50", "p95", "min", "max"],
        [
            [name, median(values), percentile(values, 0.95), min(values), max(values)]
            for name, values in times.items()
        ],
    )
    checks = [
        harness.check("load the model", median(times["load the model"]), "s", "<= 3"),
        harness.check(cold, median(times[cold]), "s", "<= 3"),
        harness.check("initialize answered", median(times["initialize answered"]), "s", "<= 1"),
        harness.check("keyturn --help", median(times["keyturn --help"]), "s", "<= 0.3"),
    ]
    harness.finish("load", args, {"seconds": times}, checks)


def output(command: list[str]) -> str:
    """Return what a command prints; its failure is ours."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
