"""The kernels compile for GPUs that are not here, to the code that their speed rests on."""

import re

import pytest
import triton

from keyturn.kernels.rotary.launch import TURN_TILE, Tile

from .ahead_of_time import CAPABILITIES, Case, compile_all

MODULE = "keyturn.kernels.rotary.device"
# (head_dim, rotary_dim, interleaved): the head sizes of the models supported, and partial rotary.
HEADS = [
    (64, 64, False),
    (96, 96, False),
    (128, 128, False),
    (128, 128, True),
    (80, 32, False),
    (256, 64, True),
]
TYPES = {"bf16": 2, "fp16": 2, "fp32": 4}


def dims(head_dim, rotary_dim, interleaved):
    tail = head_dim - rotary_dim
    return {
        "HEAD_DIM": head_dim,
        "HALF": rotary_dim // 2,
        "HALF_PAD": triton.next_power_of_2(rotary_dim // 2),
        "TAIL_PAD": triton.next_power_of_2(tail) if tail else 0,
        "INTERLEAVED": interleaved,
    }


def turn_case(head, dtype):
    pointers = {"unrotated": f"*{dtype}", "rotated": f"*{dtype}"}
    pointers |= {"slots": "*i64", "positions": "*i64"}
    numbers = {"num_rows": "i32", "num_slots": "i32", "num_heads": "i32", "turned_blocks": "i32"}
    return Case(
        MODULE,
        "rope_shift_kernel",
        pointers | {"cos": "*fp32", "sin": "*fp32"} | numbers,
        dims(*head) | {"ROWS": TURN_TILE.rows(head[0], TYPES[dtype]), "HEADS": TURN_TILE.heads},
        options={"num_warps": TURN_TILE.num_warps},
    )


def write_case(head, dtype, tile):
    caches = ("qkv", "queries", "unrotated", "rotated", "values")
    pointers = {name: f"*{dtype}" for name in caches} | {"slots": "*i64"}
    numbers = {"num_rows": "i32", "num_slots": "i32"}
    heads = {"NUM_HEADS": 12, "NUM_KV_HEADS": 2, "HEAD_PAD": triton.next_power_of_2(head[0])}
    return Case(
        MODULE,
        "write_rows_kernel",
        pointers | {"cos": "*fp32", "sin": "*fp32"} | numbers,
        dims(*head) | heads | {"ROWS": tile.rows(head[0], TYPES[dtype])},
        options={"num_warps": tile.num_warps},
    )


@pytest.fixture(scope="module")
def turned():
    cases = [(head, dtype) for head in HEADS for dtype in TYPES]
    compiled = compile_all([turn_case(head, dtype) for head, dtype in cases])
    return dict(zip(cases, compiled, strict=True))


def accesses(ptx):
    """Return the width in bytes of every access to global memory, slots' and angles' excluded."""
    found = re.findall(r"(?:ld|st)\.global([\w.:]*)\.b(\d+)\s", ptx)
    keys = [(how, int(bits)) for how, bits in found if "evict_last" not in how and bits != "64"]
    return {bits // 8 * (4 if ".v4" in how else 2 if ".v2" in how else 1) for how, bits in keys}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_turn_needs_no_more_than_registers(turned, head, dtype):
    for compiled in turned[head, dtype]:
        assert compiled.num_spilled_bytes == 0
        # Nothing is exchanged between threads, unless only two pairs fit into 16 bytes.
        assert compiled.num_shared_bytes == 0 or (dtype == "fp32" and head[2])
        assert compiled.num_registers <= 128  # four programs of four warps on a multiprocessor


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head", [head for head in HEADS if head[0] == head[1]], ids=str)
def test_a_turn_moves_8_or_16_bytes_at_a_time(turned, head, dtype):
    # 8 where eight warps share 4 KB: on an H100 the fastest for long caches all the same.
    for compiled in turned[head, dtype]:
        assert accesses(compiled.ptx) <= {8, 16}


@pytest.mark.parametrize("tile", [Tile(1024, 1, 1), Tile(8192, 1, 4)], ids=["few", "many"])
def test_writing_rows_compiles_without_spilling(tile):
    cases = [write_case(head, dtype, tile) for head in HEADS for dtype in ("bf16", "fp32")]
    for of_case in compile_all(cases):
        assert [compiled.capability for compiled in of_case] == [*CAPABILITIES]
        for compiled in of_case:
            assert compiled.num_spilled_bytes == 0
