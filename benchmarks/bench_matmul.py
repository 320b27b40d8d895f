"""Matmuls with 4- and 8-bit weights and bit planes against torch's and gemlite's; tuning per GPU.

A section of bench_kernels.py, and a script: `--tune` tries tiles and rewrites
`kernels/matmul/measured.py`. With TRITON_INTERPRET=1, `--tiny --device cpu` tests the script.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from gpu import matmul_rivals, matmul_tuning
from gpu.kernel_timer import Bench, Times, captured, copy_bandwidth, figures, relative_error
from torch import Tensor

from keyturn.kernels.matmul import quant as quant_matmul
from keyturn.kernels.matmul import reference as reference_matmul
from keyturn.kernels.matmul.bit_planes import launch as bit_matmul
from keyturn.kernels.weights.packed import BitWeight, QuantWeight, quantize_groups, quantize_planes

# Output x input features of the projections as the engine fuses them: q/k/v, output, gate and up,
# down.
SHAPES = {
    "deepseek-coder-1.3b": [(6144, 2048), (2048, 2048), (11008, 2048), (2048, 5504)],
    "deepseek-coder-6.7b": [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
    "qwen2.5-coder-1.5b": [(2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960)],
    "qwen2.5-coder-7b": [(4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944)],
}
ROWS = (1, 2, 4, 8, 16, 64)
# Output layers: not measured beside rivals, but tuned.
HEADS = [(151_936, 1536), (152_064, 3584)]
BIT_SHAPES = [(4096, 4096), (4096, 11008), (3584, 18944)]
BITS = (2, 3, 4, 6, 8)
# gemlite tries its tiles at the first call of every shape, for seconds: only of one model.
TUNED_BY_GEMLITE, GEMLITE_ROWS = ("qwen2.5-coder-7b", "tiny"), (1, 8)
TINY_SHAPES, TINY_ROWS, TINY_BITS = {"tiny": [(32, 64)]}, (1, 5), (2, 8)
_MB = 1e6
_MIN_CALLS = 16


def each(weights: list[Any], call: Callable[[Any], object]) -> Callable[[], object]:
    """Return a run that takes the next copy each time."""
    turn = itertools.cycle(weights)
    return lambda: call(next(turn))


def run(bench: Bench) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure everything; return figures and checks."""
    checks: list[dict[str, Any]] = []
    found = {
        "quant": _quant(bench, checks),
        "bits": _bits(bench, checks),
        "correctness": _correctness(bench, checks),
    }
    return found, checks


def random_quant(num_out: int, num_in: int, bits: int, device: torch.device) -> QuantWeight:
    """Return a weight of random codes in groups of 32, as fast as memory fills."""
    words = torch.randint(
        -(2**31), 2**31 - 1, (num_out, num_in * bits // 32), dtype=torch.int32, device=device
    )
    scales = torch.rand(num_out, num_in // 32, device=device).half() * 0.01
    locks = torch.zeros(-(-num_out // 16), dtype=torch.int32, device=device)
    return QuantWeight(words, scales, None, bits, 32, locks)


def random_planes(num_out: int, num_in: int, bits: int, device: torch.device) -> BitWeight:
    """Return random planes with one scale per output feature."""
    shape = (bits, num_out, num_in // 32)
    planes = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device)
    scales = torch.rand(num_out, 1, device=device).half() * 0.01
    locks = torch.zeros(-(-num_out // 16), dtype=torch.int32, device=device)
    return BitWeight(planes, scales, bits, num_in, locks)


def _quant(bench: Bench, checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shapes, rows = (TINY_SHAPES, TINY_ROWS) if bench.is_tiny else (SHAPES, ROWS)
    found, table = [], []
    for model, sizes in shapes.items():
        for num_out, num_in in sizes:
            names = matmul_rivals.NAMES if model in TUNED_BY_GEMLITE else matmul_rivals.NAMES[:2]
            for item in _one_shape(bench, num_out, num_in, rows, names):
                found.append({"model": model, **item})
                best = item["runs"]
                row = [f"{num_out}x{num_in}", item["rows"], item["path"]]
                row += [best["q4"]["p50_us"], item["share"], best["q8"]["p50_us"]]
                print(*row[:4], flush=True)  # minutes pass
                table.append([*row, *(item["speedup"].get(name) for name in matmul_rivals.NAMES)])
    harness.table(
        ["N x K", "rows", "path", "q4 us", "of copy", "q8 us", *matmul_rivals.NAMES], table
    )
    single = [item for item in found if item["rows"] == 1]
    few = [item for item in found if item["rows"] <= 16]

    def least(items: list[dict[str, Any]], name: str) -> float | None:
        values = [item["speedup"][name] for item in items if item["speedup"].get(name)]
        return min(values) if values else None

    large = [item for item in single if item["packed_bytes"] >= 4 * _MB]
    small = [item for item in single if item["packed_bytes"] < 4 * _MB]
    huge = [item["share"] for item in single if item["packed_bytes"] > 16 * _MB]
    check = harness.check
    checks += [
        check("q4, 1 row, >= 4 MB, over int4pack", least(large, "int4pack"), "times", ">= 1.6"),
        check("q4, 1 row, < 4 MB, over int4pack", least(small, "int4pack"), "times", ">= 1"),
        check("q4, 1 row, > 16 MB, of copy", min(huge) if huge else None, "share", ">= 0.7"),
        check("q4, 1-16 rows, over int4pack", least(few, "int4pack"), "times", ">= 1"),
        check("q4, 1-16 rows, over bf16", least(few, "bf16"), "times", ">= 1"),
        check("q4, 1-16 rows, over gemlite", least(few, "gemlite"), "times", ">= 1"),
    ]
    return found


def _one_shape(
    bench: Bench, num_out: int, num_in: int, rows: tuple[int, ...], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Time one weight shape, all row counts, ours and the rivals in turns."""
    device, found = bench.device, []
    sets = {}
    for name, bits in (("q4", 4), ("q8", 8)):
        count = matmul_rivals.num_copies(num_out * num_in * bits // 8, bench.is_tiny)
        sets[name] = [random_quant(num_out, num_in, bits, device) for _ in range(count)]
    rivals = matmul_rivals.build(num_out, num_in, device, bench.is_tiny, names)
    for num_rows in rows:
        x = torch.randn(num_rows, num_in, dtype=torch.bfloat16, device=device)
        runs: dict[str, tuple[Callable[[], object], int]] = {}
        for name, weights in sets.items():
            runs[name] = each(weights, lambda w, x=x: quant_matmul.quant_matmul(x, w)), len(weights)
        for name, (weights, call) in rivals.items():
            if name == "gemlite" and num_rows not in GEMLITE_ROWS:
                continue
            runs[name] = each(weights, lambda w, x=x, call=call: call(x, w)), len(weights)
        times = _times(bench, runs)
        weight = sets["q4"][0]
        moved = weight.num_bytes + 2 * num_rows * (num_in + num_out)
        plan = quant_matmul.plan_for(device, "q4", num_out, num_in)
        path = quant_matmul.choose_path(None, num_rows, plan, quant_matmul.takes_mma(weight))
        found.append(
            {
                "shape": [num_out, num_in],
                "rows": num_rows,
                "path": path,
                "packed_bytes": weight.num_bytes,
                "share": bench.share(moved, times["q4"]),
                "runs": {name: figures(value) for name, value in times.items()},
                "speedup": {
                    name: times[name].p50_us / times["q4"].p50_us
                    for name in rivals
                    if name in times
                },
            }
        )
    return found


def _times(bench: Bench, runs: dict[str, tuple[Callable[[], object], int]]) -> dict[str, Times]:
    """Measure each run in a graph of its own length; a rival that fails is left out."""
    graphs, calls = {}, {}
    for name, (call, num_copies) in runs.items():
        # To start a graph takes microseconds: few large weights are gone through more than once.
        count = num_copies if bench.is_tiny else max(num_copies, _MIN_CALLS)
        try:
            graphs[name], calls[name] = captured(call, bench.device, count), count
        except Exception as error:  # a rival may refuse a shape or a GPU; ours may not
            if name in ("q4", "q8"):
                raise
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    times = bench.measure(graphs)
    return {
        name: Times(
            value.p50_us / calls[name], value.p20_us / calls[name], value.p80_us / calls[name]
        )
        for name, value in times.items()
    }


def _bits(bench: Bench, checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time and memory against the number of bits, at one row; and int8 activations."""
    found, table = [], []
    all_bits = TINY_BITS if bench.is_tiny else BITS
    for num_out, num_in in TINY_SHAPES["tiny"] if bench.is_tiny else BIT_SHAPES:
        x = torch.randn(1, num_in, dtype=torch.bfloat16, device=bench.device)
        x_int8, x_scales = bit_matmul.quantize_rows(x)
        line: list[object] = [f"{num_out}x{num_in}"]
        times_us = []
        for bits in all_bits:
            count = matmul_rivals.num_copies(num_out * num_in * bits // 8, bench.is_tiny)
            weights = [random_planes(num_out, num_in, bits, bench.device) for _ in range(count)]
            runs = {"bf16": (each(weights, lambda w, x=x: bit_matmul.bit_matmul(x, w)), count)}
            if bits < 8:
                call = each(
                    weights,
                    lambda w, x=x_int8, s=x_scales: bit_matmul.bit_matmul_int8(x, s, w),
                )
                runs["int8"] = (call, count)
            times = _times(bench, runs)
            times_us.append(times["bf16"].p50_us)
            found.append(
                {
                    "shape": [num_out, num_in],
                    "bits": bits,
                    "packed_bytes": weights[0].num_bytes,
                    "share": bench.share(weights[0].num_bytes, times["bf16"]),
                    "runs": {name: figures(value) for name, value in times.items()},
                }
            )
            line.append(f"{times['bf16'].p50_us:.1f} / {weights[0].num_bytes / _MB:.1f}")
        table.append(line)
        checks.append(
            harness.check(
                f"{num_out}x{num_in}, 1 row: 8 bits over 2 bits",
                times_us[-1] / times_us[0],
                "times",
                ">= 1.5",
            )
        )
    harness.table(["N x K, us / MB", *(f"{bits} bits" for bits in all_bits)], table)
    return found


def _correctness(bench: Bench, checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Error against float64 with poisoned memory; a row's bits alone and among others."""
    num_out, num_in = (33, 128) if bench.is_tiny else (1544, 1536)  # ragged on purpose
    device = bench.device
    values = torch.randn(num_out, num_in, device=device)
    rows = 6 if bench.is_tiny else 64
    x = torch.randn(rows, num_in, dtype=torch.bfloat16, device=device)
    weights = {
        "q4": quantize_groups(values, 4, 32, symmetric=True),
        "q4 asymmetric": quantize_groups(values, 4, 32, symmetric=False),
        "q4 groups of 64": quantize_groups(values, 4, 64, symmetric=False),
        "q8": quantize_groups(values, 8, 32, symmetric=True),
        "q8 per row": quantize_groups(values, 8, num_in, symmetric=True),
    } | {f"b{bits}": quantize_planes(values, bits, num_in) for bits in (3, 8)}
    if bench.is_tiny:
        weights = {name: weights[name] for name in ("q4", "b3")}
    found: dict[str, Any] = {}
    worst: dict[str, float] = {}
    is_invariant = True
    # Every torch.empty, outputs and partial sums included, is then filled with NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for name, weight in weights.items():
            exact = x.double() @ reference_matmul.dequantize(weight).double().T

            def product(x: Tensor, path: str, weight: QuantWeight | BitWeight = weight) -> Tensor:
                if isinstance(weight, BitWeight):
                    return bit_matmul.bit_matmul(x, weight, out_dtype=torch.float32, path=path)
                return quant_matmul.quant_matmul(x, weight, out_dtype=torch.float32, path=path)

            takes_mma = isinstance(weight, QuantWeight) and quant_matmul.takes_mma(weight)
            for path in ("gemv", "mma", "dot", "dense") if takes_mma else ("gemv", "dot", "dense"):
                together = product(x, path)
                error = relative_error(together, exact)
                found[f"{name} {path}"] = error
                worst[path] = max(worst.get(path, 0.0), error if error == error else 1e9)
                if path == "dense":
                    continue
                same = torch.equal(product(x, path), together)
                for count in (1, 3) if bench.is_tiny else (1, 2, 3, 5, 17, 33):
                    first = rows - min(count, rows)
                    same &= torch.equal(product(x[first:], path), together[first:])
                if not same:
                    print(f"{name}, {path}: a row's bits change with its batchmates")
                is_invariant &= same
    finally:
        torch.use_deterministic_algorithms(False)
    limits = {"gemv": "<= 2e-5", "mma": "<= 2e-5", "dot": "<= 6e-3", "dense": "<= 6e-3"}
    for path, limit in limits.items():
        checks.append(harness.check(f"error of {path} against float64", worst[path], "norm", limit))
    checks.append(harness.check("rows keep their bits", float(is_invariant), "bool", ">= 1"))
    return found


def main() -> None:
    """Measure, or tune and write the table."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="shapes that only test the script")
    parser.add_argument("--tune", action="store_true", help="try tiles and write the table")
    parser.add_argument("--kinds", nargs="+", default=[*matmul_tuning.KINDS])
    parser.add_argument(
        "--table", type=Path, default=matmul_tuning.TABLE, help="where --tune writes"
    )
    parser.add_argument("--commit", help="what runs here, where git cannot say it")
    parser.set_defaults(model=None)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    with torch.inference_mode():
        bandwidth = copy_bandwidth(device, args.repeats, args.tiny)
        print(f"device copy, bytes read plus written: {bandwidth / 1e12:.2f} TB/s", flush=True)
        bench = Bench(device, args.repeats, args.tiny, args.tune, bandwidth)
        if args.tune:
            models = (TINY_SHAPES if args.tiny else SHAPES).values()
            shapes = {"q": [shape for sizes in models for shape in sizes]}
            shapes["q"] += [] if args.tiny else HEADS
            shapes["b"] = TINY_SHAPES["tiny"] if args.tiny else BIT_SHAPES
            matmul_tuning.tune(bench, shapes, args.kinds, args.table, random_quant, random_planes)
            return
        found, checks = run(bench)
    harness.finish("matmul", args, {"copy_bytes_per_s": bandwidth, **found}, checks)


if __name__ == "__main__":
    main()
