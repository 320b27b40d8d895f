"""How kernels are timed: in turns, in CUDA graphs, the second-level cache cold."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]

# More than any GPU's second-level cache (60 MB on an H200): read between two measurements. Were it
# written, the next run would be charged for writing back what the cache still held of it.
_FLUSHED_BYTES = 256 << 20
_COPIED_BYTES = 1 << 30
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Times:
    """Quantiles of one run's time, in microseconds."""

    p50_us: float
    p20_us: float
    p80_us: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What every section is given.

    Attributes:
        device: where it runs; figures mean something on CUDA only.
        repeats: measurements of each run.
        is_tiny: shapes of seconds in the interpreter, to test the benchmark itself.
        is_sweep: try every tile instead.
        copy_bytes_per_s: what a large device copy reads and writes in a second.
    """

    device: torch.device
    repeats: int
    is_tiny: bool
    is_sweep: bool
    copy_bytes_per_s: float

    def measure(self, runs: dict[str, Run], calls: int = 1) -> dict[str, Times]:
        """Time runs of `calls` calls each, in turns, so that a slow moment hits all alike."""
        return measure(runs, self.device, self.repeats, calls)

    def share(self, num_bytes: int, times: Times) -> float:
        """Return the bytes that had to be moved as a share of what a copy moves in that time."""
        return num_bytes / (times.p50_us * 1e-6) / self.copy_bytes_per_s


def measure(
    runs: dict[str, Run], device: torch.device, repeats: int, calls: int = 1
) -> dict[str, Times]:
    """Time each of `runs`, round after round; each makes `calls` calls, and one call is reported.

    On CUDA, events time the work on the device. The cache is emptied before every run; while the
    device does that, the host is ahead with what comes next.
    """
    is_cuda = device.type == "cuda"
    flushed = torch.ones(_FLUSHED_BYTES // 4 if is_cuda else 1, device=device)
    total = torch.empty((), device=device)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(_WARM_UP + repeats):
        events = {}
        for name, run in runs.items():
            torch.sum(flushed, 0, out=total)
            if is_cuda:
                events[name] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[name][0].record()
                run()
                events[name][1].record()
            else:
                start = time.perf_counter()
                run()
                events[name] = (time.perf_counter() - start) * 1e6
        if is_cuda:
            torch.cuda.synchronize(device)
            events = {name: 1e3 * start.elapsed_time(end) for name, (start, end) in events.items()}
        if number >= _WARM_UP:
            for name, microseconds in events.items():
                found[name].append(microseconds / calls)
    return {name: _times(values) for name, values in found.items()}


def _times(values: list[float]) -> Times:
    quantiles = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    )
    return Times(*quantiles.tolist())


def captured(run: Run, device: torch.device, calls: int = 1) -> Run:
    """Return a replay of `calls` runs as one CUDA graph, so that launches cost no host time.

    Several calls keep the events' own few microseconds out of short runs. On the CPU there is no
    graph, only the calls.
    """

    def repeat() -> None:
        for _ in range(calls):
            run()

    if device.type != "cuda":
        return repeat
    # Compilation and first allocations must be over before the capture.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()  # Triton compiles, torch.compile too
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        repeat()

    def replay(_kept: Run = run) -> None:  # what was captured must not be unloaded
        graph.replay()

    return replay


def copy_bandwidth(device: torch.device, repeats: int, is_tiny: bool) -> float:
    """Return the bytes read plus written per second by a large copy on the device.

    The better of the driver's copy and of an elementwise kernel: on an H100 the first reached
    2.4 TB/s where the second reached 3.0.
    """
    size = 1 << 16 if is_tiny else _COPIED_BYTES
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    runs = {
        "copy": captured(lambda: target.copy_(source), device),
        "kernel": captured(lambda: torch.neg(source, out=target), device),
    }
    times = measure(runs, device, repeats)
    return 2 * size / (min(times.values(), key=lambda item: item.p50_us).p50_us * 1e-6)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference over the norm of the exact; NaN where anything is NaN."""
    return ((found.double() - exact).norm() / exact.norm()).item()


def figures(times: Times, **others: object) -> dict[str, Any]:
    """Return a run's times and whatever else is known of it, as plain data."""
    return {**asdict(times), **others}
