"""The kernels compile for GPUs that are not here, to the code that their speed rests on."""

import torch
import triton

from keyturn.kernels.attention import slots_tiles as tiles
from keyturn.kernels.attention.slots_tiles import Cut

from .ahead_of_time import CAPABILITIES, Case, compile_all


def split_case(path, tile, dtype, head_dim, group, by_position, positions, with_weights, cut=None):
    numbers = ["num_slots", "head_slots", "num_splits", "max_slots"]
    head_pad = triton.next_power_of_2(head_dim)
    cut = cut or Cut(16, tile.num_rows, is_combined=False)
    constants = {
        "HEAD_DIM": head_dim,
        "HEAD_PAD": head_pad,
        "BLOCK": tile.block(head_dim, 4 if dtype == "fp32" else 2),
        "STAGES": tile.num_stages,
        "BY_POSITION": by_position,
        "ON_DEVICE": True,
        "KEEP_SCORES": with_weights,
        **cut.constants(head_pad),
    }
    if path != "vector":
        numbers += ["num_rows"]
        constants |= {"GROUP": group, "BLOCK_M": tile.num_rows, "BLOCK_HEADS": cut.num_heads}
        constants["WIDEN"] = False
    return Case(
        "keyturn.kernels.attention.slots_device",
        "vector_kernel" if path == "vector" else "dot_kernel",
        {name: f"*{dtype}" for name in ("queries", "keys", "values", "out")}
        | {name: f"*{positions}" for name in ("row_positions", "slot_positions")}
        | {name: "*fp32" for name in ("sums", "largest", "totals", "scores", "log_sums")}
        | {"num_used": "*i32", "locks": "*i32", "scale": "fp32"}
        | {name: "i32" for name in numbers},
        constants,
        options={"num_warps": tile.num_warps},
    )


HEADS_TO_COMPILE = [
    ("bf16", 128, 1, False, "fp32", False),
    ("bf16", 64, 3, True, "i64", True),
    ("fp16", 80, 4, True, "i32", True),
    ("fp32", 128, 7, True, "i64", True),
]
# (path, dtype, head_dim, group, by position, positions, with weights, cut), a step's and others'.
ONE_LAUNCH_TO_COMPILE = [
    ("dot", "bf16", 128, 6, False, "fp32", False, Cut(34, 3, True)),
    ("dot", "bf16", 128, 7, False, "fp32", False, Cut(33, 4, True)),
    ("dot", "bf16", 128, 4, True, "i64", False, Cut(33, 7, True)),
    ("dot", "bf16", 128, 1, True, "i64", True, Cut(16, 16, True)),
    ("vector", "bf16", 128, 1, False, "fp32", False, Cut(33, 1, True)),
    ("vector", "bf16", 128, 1, True, "i64", True, Cut(33, 1, True)),
    ("vector", "fp32", 80, 1, True, "i64", True, Cut(256, 1, True)),
]


def check_parts(compiled, case):
    assert compiled.num_spilled_bytes == 0, case
    assert "cp.async.cg.shared.global" in compiled.ptx, case  # 16 bytes, under way early


def test_the_parts_compile_without_spilling_and_load_16_bytes_at_a_time():
    sizes = {2: torch.empty(1, dtype=torch.bfloat16), 4: torch.empty(1)}
    cases = [
        split_case(path, tiles.default_tile(path, sizes[4 if rest[0] == "fp32" else 2]), *rest)
        for path in ("vector", "dot")
        for rest in HEADS_TO_COMPILE
    ]
    for case, of_case in zip(cases, compile_all(cases), strict=True):
        for compiled in of_case:
            check_parts(compiled, case)
            assert compiled.num_shared_bytes <= 100 << 10, case  # one program at least, everywhere
            assert ("mma.sync" in compiled.ptx) == (
                case.kernel == "dot_kernel" and case.types["keys"] != "*fp32"
            )


def test_one_launch_compiles_without_spilling_and_fits_as_many_programs():
    tile_of = {"vector": tiles.VECTOR_TILE, "dot": tiles.DOT_TILE}
    cases = [split_case(path, tile_of[path], *rest) for path, *rest in ONE_LAUNCH_TO_COMPILE]
    for case, of_case in zip(cases, compile_all(cases), strict=True):
        tile = tile_of[case.kernel.removesuffix("_kernel")]
        for compiled in of_case:
            check_parts(compiled, case)
            assert "atom.global.gpu.acq_rel" in compiled.ptx
            assert "ld.global.cg" in compiled.ptx
            # A multiprocessor has 65,536 registers, and gives each warp a multiple of 256.
            of_warp = triton.cdiv(compiled.num_registers, 8) * 256
            assert tile.programs * tile.num_warps * of_warp <= 65_536, case


def test_the_parts_of_many_rows_compile_without_spilling():
    hopper = [("bf16", 128, 1, True, "i64", True), ("bf16", 128, 7, True, "i64", False)]
    ampere = [HEADS_TO_COMPILE[2], *hopper[:1]]
    for capability, tile, instruction, shapes in (
        (80, tiles.WIDE_TILE_BEFORE_HOPPER, "mma.sync", ampere),
        (90, tiles.WIDE_TILE, "wgmma", [*HEADS_TO_COMPILE[:3], *hopper]),
    ):
        cases = [split_case("wide", tile, *shape) for shape in shapes]
        for case, of_case in zip(cases, compile_all(cases), strict=True):
            compiled = of_case[CAPABILITIES.index(capability)]
            check_parts(compiled, case)
            assert instruction in compiled.ptx
            with_weights = case.constants["KEEP_SCORES"]  # then one program is enough
            # Two programs, each with a KiB of the system's, in what a multiprocessor has.
            room = {80: 164, 90: 228}[capability] // (1 if with_weights else 2) - 1
            assert compiled.num_shared_bytes <= room << 10, case


def test_the_sums_and_the_weights_compile_without_spilling():
    floats = {name: "*fp32" for name in ("sums", "largest", "totals", "log_sums")}
    cases = [
        Case(
            "keyturn.kernels.attention.slots_combine",
            "combine_kernel",
            floats | {"out": "*bf16", "num_used": "*i32", "num_slots": "i32", "num_splits": "i32"},
            {"HEAD_DIM": head_dim, "HEAD_PAD": triton.next_power_of_2(head_dim), "BLOCK": 32}
            | {"SPLITS_PAD": splits, "CHUNK": min(16 * num_warps, splits), "ON_DEVICE": True},
            options={"num_warps": num_warps},
        )
        for head_dim, splits, num_warps in [(128, 1, 1), (128, 16, 1), (80, 256, 4), (256, 32, 2)]
    ]
    cases += [
        Case(
            "keyturn.kernels.attention.slots_combine",
            "weights_kernel",
            {name: "*fp32" for name in ("scores", "log_sums", "weights")}
            | {"num_used": "*i32"}
            | {name: "i32" for name in ("num_slots", "num_heads", "max_slots", "row_stride")},
            {"HEADS": 32, "BLOCK": 128, "ADD": add, "ON_DEVICE": True},
            options={"num_warps": 4},
        )
        for add in (False, True)
    ]
    for case, of_case in zip(cases, compile_all(cases), strict=True):
        for compiled in of_case:
            assert compiled.num_spilled_bytes == 0, case
