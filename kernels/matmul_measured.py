"""Plans of `matmul_table.py` per GPU; written by `benchmarks/bench_matmul.py --tune`, not by hand.

GPU (part of its name) to kind to "NxK" to [gemv tile, dot tile, [max_gemv_rows, min_dense_rows]].
"""

from __future__ import annotations

MEASURED: dict[str, dict[str, dict[str, list[list[int]]]]] = {}
