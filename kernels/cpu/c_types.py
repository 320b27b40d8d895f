"""The structures of `cpu_step_types.h` that come from here, field by field in its order."""

from __future__ import annotations

import ctypes


class CUpdate(ctypes.Structure):
    """A low-rank update of a matrix; `kind` as in its enum."""

    _fields_ = (
        ("expand", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rank", "kind", "first")),
    )


class CMatrix(ctypes.Structure):
    """A weight (rows, columns): `kind` as in its enum."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("update", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "row_bytes", "kind")),
    )


class CLayer(ctypes.Structure):
    """One decoder layer."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("attention_norm_bias", ctypes.c_void_p),
        ("mlp_norm_bias", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("window", ctypes.c_int64),
        *(
            (name, CMatrix)
            for name in ("queries", "keys", "values", "output", "gate", "up", "down")
        ),
        *((f"{phase}_shrink", CMatrix) for phase in ("qkv", "output", "mlp", "down")),
    )


class CModel(ctypes.Structure):
    """What does not change between calls."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("norm_bias", ctypes.c_void_p),
        ("head", CMatrix),
        *(
            (name, ctypes.c_int64)
            for name in (
                "num_layers",
                "hidden_size",
                "intermediate_size",
                "num_heads",
                "num_kv_heads",
                "head_dim",
                "interleaved",
                "layer_norm",
                "activation",
                "shrunk_width",
            )
        ),
        ("eps", ctypes.c_double),
    )


class CStep(ctypes.Structure):
    """What one call is about; `logits` alone, or the cache's fields."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "hidden",
                "unrotated",
                "rotated",
                "cached_values",
                "slots",
                "row_positions",
                "slot_positions",
                "unseen",
                "cos",
                "sin",
                "weights",
                "skipped",
                "logits",
                "scratch",
                "parallel",
            )
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                "n",
                "num_slots",
                "capacity",
                "cache_kind",
                "rotary_half",
                "num_threads",
                "isa",
                "num_marked",
            )
        ),
    )


def _layout() -> int:
    packed = 0
    for each in (CUpdate, CMatrix, CLayer, CModel, CStep):
        packed = packed << 12 | ctypes.sizeof(each)
    return packed


# Sizes of all of these, as `keyturn_layout` of a library that was built from the same version.
LAYOUT = _layout()
