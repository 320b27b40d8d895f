"""What an edit costs on a GPU against computing everything again: turn plus new tokens.

The setting of "Let the Code LLM Edit Itself When You Edit the Code" (arXiv 2407.03157): shapes of
DeepSeek-Coder, a context of 8,192 tokens, edits of five lines near its top, so that nearly every
key turns. Edits and full recomputation run the engine's own code, from the tokens wanted to the
logits after the prompt; a deletion needs no new rows and ends when its keys are turned. Weights are
random, which costs the same but makes deeper layers say nothing about quality: what is compared
with a full prefill is layer 0, where a turn is exact, and every layer after healing. Needs a CUDA
device; `--tiny --device cpu` only shows that it works.
"""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
import torch
from gpu import edit_gpu_errors, edit_gpu_models
from gpu.kernel_timer import copy_bandwidth
from numpy.typing import NDArray

from keyturn.engine.model.config import ModelConfig
from keyturn.engine.model.layers import go_on
from keyturn.engine.prompt.policy import find_policy
from keyturn.engine.prompt.prompt_cache import PromptCache
from keyturn.engine.prompt.repair import BY_SHARE

Ints = NDArray[np.int64]

NUM_TOKENS, LINES_TOKENS, PLACE_TOKENS = 8192, 55, 20
TINY_TOKENS = 600
_WARM_UP = 4  # of edits: two of each of the two places
# Share of a full recomputation that an edit has to save, in percent: an insertion or several places
# at once, and a deletion in one place.
TARGETS = {"1.3b": 93, "6.7b": 95, "33b": 96}
DELETION_TARGET = 98
MIN_TFLOPS = 450
# Two bfloat16 roundings of the same numbers, at the most half a unit in the last place each.
MAX_LAYER_0_ERROR = 0.004
# As in tests/tolerance.py.
MAX_HEALED_ERROR = 0.04


@dataclass(frozen=True, slots=True)
class Edit:
    """Lines that are deleted, and others inserted there, by turns at two sets of places.

    With one set the rows inserted last would lie at the cache's end when they are deleted; with two
    they have moved into the holes of the other, and every deletion has holes to fill.

    Attributes:
        name: for the table.
        places: each a list of (start, end) of what is deleted and inserted.
    """

    name: str
    places: tuple[list[tuple[int, int]], list[tuple[int, int]]]

    def at(self, number: int) -> Ints:
        """Return the places of a set, (n,)."""
        return np.concatenate([np.arange(*each) for each in self.places[number % 2]])

    def without(self, token_ids: Ints, number: int) -> Ints:
        """Return the tokens that a set of places leaves."""
        return np.delete(token_ids, self.at(number))


def edits(num_tokens: int) -> list[Edit]:
    """Return edits of five lines: in one place near the top, and in three over the context."""
    at = num_tokens // 128
    one = [[(start, start + LINES_TOKENS)] for start in (at, at + 2 * LINES_TOKENS)]
    starts = (at, num_tokens // 2, num_tokens - 8 * PLACE_TOKENS)
    many = [
        [(start + by, start + by + PLACE_TOKENS) for start in starts]
        for by in (0, 3 * PLACE_TOKENS)
    ]
    return [Edit("5 lines", (one[0], one[1])), Edit("3 places", (many[0], many[1]))]


class Run:
    """One model: its caches, and what was measured.

    Attributes:
        config: the model's shape.
        figures: for the closing object.
        rows: of the table.
        checks: against the targets.
    """

    def __init__(self, name: str, args: argparse.Namespace, copy_bytes_per_s: float) -> None:
        """Make the model and prefill the context twice: to be edited, and to be compared with."""
        self._name, self._args = name, args
        self._device = torch.device(args.device)
        self._copy_bytes_per_s = copy_bytes_per_s
        self.config: ModelConfig = (
            edit_gpu_models.TINY if args.tiny else edit_gpu_models.MODELS[name]
        )
        num_tokens = TINY_TOKENS if args.tiny else NUM_TOKENS
        self._random = np.random.default_rng(args.seed)
        self._token_ids: Ints = self._random.integers(0, self.config.vocab_size, num_tokens)
        decoder = edit_gpu_models.random_decoder(self.config, torch.bfloat16, self._device)
        self._full, self._edited = (
            PromptCache(decoder, num_tokens + 64, find_policy(policy), args.chunk)
            for policy in ("full", args.policy)
        )
        self.figures: dict[str, Any] = {"num_tokens": num_tokens, "edits": {}}
        self.rows: list[list[object]] = []
        self.checks: list[dict[str, Any]] = []

    def measure(self) -> None:
        """Measure full recomputation, then every edit, then compare caches."""
        full_ms = self._measure_full()
        self._serve(self._edited, self._token_ids)
        for edit in edits(len(self._token_ids)):
            self._measure_edit(edit, full_ms)
        if self._args.profile:
            self._profile()
        self._compare()

    def _serve(self, prompt: PromptCache, token_ids: Ints) -> tuple[float, float]:
        """Bring a cache to these tokens; return the whole time and the host's part, in ms."""
        self._wait()
        start = time.perf_counter()
        prompt.set_prompt({("prefix",): token_ids})
        prompt.patch(go_on)
        prompt.repair(BY_SHARE, go_on)  # under that policy only
        host = time.perf_counter()
        self._wait()
        return 1e3 * (time.perf_counter() - start), 1e3 * (host - start)

    def _measure_full(self) -> float:
        repeats = 2 if self._args.tiny else 5
        times = [self._serve(self._full, self._token_ids) for _ in range(2 + repeats)][2:]
        found = _quantiles(times)
        flops = edit_gpu_models.prefill_flops(self.config, len(self._token_ids))
        tflops = flops / found["p50_ms"] / 1e9
        self.figures["full"] = {**found, "tflops_per_s": tflops}
        self.rows.append([self._name, "full recomputation", *_cells(found), None, None, tflops])
        self.checks.append(
            harness.check(f"{self._name} full recomputation", tflops, "TFLOP/s", f">= {MIN_TFLOPS}")
        )
        return found["p50_ms"]

    def _measure_edit(self, edit: Edit, full_ms: float) -> None:
        times: dict[str, list[tuple[float, float]]] = {"deletion": [], "insertion": []}
        for number in range(_WARM_UP + self._args.repeats):
            shorter, longer = edit.without(self._token_ids, number), self._token_ids.copy()
            at = edit.at(number)  # new text: what was deleted would only be brought back
            longer[at] = self._random.integers(0, self.config.vocab_size, len(at))
            for kind, wanted in (("deletion", shorter), ("insertion", longer)):
                times[kind].append(self._serve(self._edited, wanted))
            self._token_ids = longer
        floors = edit_gpu_models.floor_bytes(self.config, len(self._token_ids), 2)
        for kind, values in times.items():
            found = _quantiles(values[_WARM_UP:])
            saved = 100 * (1 - found["p50_ms"] / full_ms)
            floor = 1e3 * floors[kind] / self._copy_bytes_per_s
            name = f"{kind}, {edit.name}"
            self.figures["edits"][name] = {**found, "saved_percent": saved, "floor_ms": floor}
            self.rows.append([self._name, name, *_cells(found), saved, floor, None])
            is_one_deletion = kind == "deletion" and len(edit.places[0]) == 1
            target = DELETION_TARGET if is_one_deletion else TARGETS[self._name]
            self.checks.append(
                harness.check(f"{self._name} {name}: saved", saved, "%", f">= {target}")
            )

    # Correctness

    def _compare(self) -> None:
        """Compare edited caches with full prefills of the same tokens."""
        errors: dict[str, float] = {"layer 0": 0.0, "turn": 0.0}
        lines, places = edits(len(self._token_ids))
        for token_ids in (
            self._token_ids,
            lines.without(self._token_ids, 0),
            self._token_ids,
            places.without(self._token_ids, 1),
        ):
            self._serve(self._edited, token_ids)
            self._serve(self._full, token_ids)
            edited, full = self._edited.rows, self._full.rows
            if (
                not np.array_equal(np.sort(edited.positions), np.arange(len(token_ids)))
                or (edited.token_ids[edited.by_position()] != token_ids).any()
            ):
                raise AssertionError("the edited cache does not hold the tokens wanted")
            errors["layer 0"] = max(errors["layer 0"], edit_gpu_errors.layer_error(edited, full, 0))
            errors["turn"] = max(
                errors["turn"],
                *(edit_gpu_errors.turn_error(edited, at) for at in (0, self.config.num_layers - 1)),
            )
        self._edited.heal(len(self._token_ids), go_on)
        errors["healed"] = max(
            edit_gpu_errors.layer_error(edited, full, layer)
            for layer in range(self.config.num_layers)
        )
        self.figures["errors"] = errors
        for name, limit, what in (
            ("layer 0", MAX_LAYER_0_ERROR, "layer 0 after edits against a full prefill"),
            ("turn", 1, "keys against their rotation in float64, in roundings"),
            ("healed", MAX_HEALED_ERROR, "every layer after healing against a full prefill"),
        ):
            self.checks.append(
                harness.check(f"{self._name} {what}", errors[name], "at most", f"<= {limit}")
            )

    def _profile(self) -> None:
        """Print where the device's time goes, for one full recomputation, insertion, deletion."""
        lines = edits(len(self._token_ids))[0]
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        by = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        for what, prompt, token_ids in (
            ("full recomputation", self._full, self._token_ids),
            ("deletion", self._edited, lines.without(self._token_ids, 0)),
            ("insertion", self._edited, self._token_ids),
        ):
            with torch.profiler.profile(activities=kinds) as profile:
                self._serve(prompt, token_ids)
            print(f"\n{self._name}, {what}")
            events = sorted(profile.key_averages(), key=lambda e: getattr(e, by), reverse=True)
            harness.table(
                ["kernel or operator", "ms", "calls"],
                [[e.key[:90], getattr(e, by) / 1e3, e.count] for e in events[:14]],
            )

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _quantiles(times: list[tuple[float, float]]) -> dict[str, float]:
    total, host = np.array(times).T
    p50, p20, p80, p95 = np.quantile(total, [0.5, 0.2, 0.8, 0.95])
    return {
        "p50_ms": float(p50),
        "p20_ms": float(p20),
        "p80_ms": float(p80),
        "p95_ms": float(p95),
        "host_ms": float(np.median(host)),
    }


def _cells(found: dict[str, float]) -> list[object]:
    return [f"{found[name]:.2f}" for name in ("p50_ms", "p20_ms", "p80_ms", "p95_ms", "host_ms")]


def main() -> None:
    """Measure each model, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--only", choices=TARGETS, nargs="+", default=[*TARGETS])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--policy", choices=("turn", "repair"), default="turn")
    parser.add_argument("--repeats", type=int, default=20, help="of each edit")
    parser.add_argument("--chunk", type=int, default=NUM_TOKENS, help="rows of a pass at most")
    parser.add_argument("--tiny", action="store_true", help="shapes that only test the benchmark")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, too")
    parser.add_argument("--commit", help="what runs here, where git cannot say it")
    parser.set_defaults(model=None)
    args = parser.parse_args()
    if args.save and args.tiny:
        parser.error("--tiny gives no figures to --save")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --tiny --device cpu shows that the benchmark works")
    torch.manual_seed(args.seed)
    bandwidth = copy_bandwidth(device, args.repeats, args.tiny)
    print(f"device copy, bytes read plus written: {bandwidth / 1e12:.2f} TB/s", flush=True)
    figures: dict[str, Any] = {"cuda": torch.version.cuda, "copy_bytes_per_s": bandwidth}
    models: dict[str, Any] = {}
    rows: list[list[object]] = []
    checks: list[dict[str, Any]] = []
    for name in args.only:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the largest model needs nearly all there is
        models[name], found = _guarded(lambda name=name: Run(name, args, bandwidth), name)
        rows += found[0]
        checks += found[1]
    harness.table(
        [
            "model",
            "what",
            "p50 ms",
            "p20",
            "p80",
            "p95",
            "host ms",
            "saved %",
            "floor ms",
            "TFLOP/s",
        ],
        rows,
    )
    harness.finish("edit_gpu", args, {**figures, "models": models}, checks)


def _guarded(
    make: Callable[[], Run], name: str
) -> tuple[dict[str, Any], tuple[list[list[object]], list[dict[str, Any]]]]:
    """Run one model; what fails is printed, noted and a missed check, and the next one runs."""
    run = None
    start = time.perf_counter()
    try:
        run = make()
        print(f"\n{name}: made in {time.perf_counter() - start:.1f} s", flush=True)
        run.measure()
        error = None
    except Exception as raised:  # a GPU's time is dear: whatever one model finds, try the others
        error = f"{type(raised).__name__}: {str(raised).splitlines()[:1]}"
        traceback.print_exc()
    figures = run.figures if run else {}
    rows, checks = (run.rows, run.checks) if run else ([], [])
    if error is not None:
        figures = {**figures, "error": error}
        checks = [*checks, harness.check(f"{name} ran to its end", None, "", ">= 1")]
    return figures, (rows, checks)


if __name__ == "__main__":
    main()
