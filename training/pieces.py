#!/usr/bin/env python3
r"""Pack a checkpoint for moving between machines, in pieces OUT.000, OUT.001, ...

    python -m training.pieces pack out/final.pt final       exact Q4_1, then what it lost (6 bits)
    python -m training.pieces unpack final final.pt         masters again, to 1/128 of a step

A packed checkpoint is 185 MB instead of 538, or 84 MB with --no-masters; it holds the exact codes
that the GGUF ships. All other scripts take the prefix of the pieces in place of a .pt file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from torch import Tensor

from .model.rounding import GROUP

LEVELS = 64  # of a step, for what the rounding lost
_SHIFTS = (0, 6, 12, 18)  # four of them in three bytes
_SCALE_BYTES, _BLOCK_BYTES = 2, 20  # of a Q4_1 block: scale, minimum, 16 bytes of nibbles


def write_pieces(data: bytes, prefix: str, piece_mb: float) -> int:
    """Write PREFIX.000, PREFIX.001, ... of that many MiB; return how many."""
    size = int(piece_mb * 2**20)
    for start in range(0, len(data), size):
        Path(f"{prefix}.{start // size:03d}").write_bytes(data[start : start + size])
    return -(-len(data) // size)


def read_pieces(prefix: str) -> bytes:
    """Return what `write_pieces` wrote.

    Raises:
        FileNotFoundError: there are no pieces of that prefix.
    """
    path = Path(prefix)
    pieces = sorted(path.parent.glob(path.name + ".[0-9][0-9][0-9]"))
    if not pieces:
        raise FileNotFoundError(f"no pieces {prefix}.000 ...")
    return b"".join(piece.read_bytes() for piece in pieces)


def pack_checkpoint(checkpoint: dict[str, Any], with_masters: bool = True) -> bytes:
    """Return a checkpoint as bytes.

    Args:
        checkpoint: "model" is the state, float32; the rest has to be JSON.
        with_masters: whether what the rounding lost is kept, in 6 bits.
    """
    names, streams, residuals, plain = [], [], [], []
    for name, weight in checkpoint["model"].items():
        names.append((name, list(weight.shape)))
        values = weight.float().numpy()
        if values.ndim == 1:
            plain.append(values.tobytes())
            continue
        blocks = quantize(values, GGMLQuantizationType.Q4_1).reshape(-1, _BLOCK_BYTES)
        scale, minimum, nibbles = np.split(blocks, [_SCALE_BYTES, 2 * _SCALE_BYTES], 1)
        streams += [part.tobytes() for part in (nibbles, scale, minimum)]
        if with_masters:
            residuals.append(_residual(values, blocks))
    more = {key: value for key, value in checkpoint.items() if key != "model"}
    streams = [*streams, b"".join(plain), *residuals]
    head = {"names": names, "masters": with_masters, "more": more}
    header = json.dumps({**head, "sizes": [len(stream) for stream in streams]}).encode()
    return len(header).to_bytes(4, "little") + header + b"".join(streams)


def unpack_checkpoint(data: bytes, rounded: bool = False) -> dict[str, Any]:
    """Return the checkpoint that `pack_checkpoint` packed.

    Args:
        data: as packed.
        rounded: give its exact Q4_1 values instead of the masters.
    """
    head, streams = _split(data)
    num_matrices = sum(len(shape) == 2 for _, shape in head["names"])
    residuals = streams[3 * num_matrices + 1 :]
    plain = np.frombuffer(streams[3 * num_matrices], np.float32)
    state: dict[str, Tensor] = {}
    matrix = at = 0
    for name, shape in head["names"]:
        if len(shape) == 1:
            values = plain[at : at + shape[0]].copy()
            at += shape[0]
        else:
            nibbles, scale, minimum = (
                np.frombuffer(stream, np.uint8).reshape(-1, width)
                for stream, width in zip(streams[3 * matrix :], (16, 2, 2), strict=False)
            )
            blocks = np.concatenate([scale, minimum, nibbles], 1)
            values = dequantize(blocks, GGMLQuantizationType.Q4_1)
            if head["masters"] and not rounded:
                values = values + _lost(residuals[matrix]) * _scale(blocks)
            matrix += 1
        state[name] = torch.from_numpy(values.reshape(shape))
    return {"model": state, **head["more"]}


def _split(data: bytes) -> tuple[dict[str, Any], list[memoryview]]:
    """Return the header and the streams behind it."""
    size = int.from_bytes(data[:4], "little")
    head, at, streams = json.loads(data[4 : 4 + size]), 4 + size, []
    for length in head["sizes"]:
        streams.append(memoryview(data)[at : at + length])
        at += length
    return head, streams


def _scale(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks[:, :_SCALE_BYTES]).view(np.float16).astype(np.float32)


def _residual(values: NDArray[np.float32], blocks: NDArray[np.uint8]) -> bytes:
    """Return what Q4_1 lost, in `LEVELS` of its step."""
    lost = values.reshape(-1, GROUP) - dequantize(blocks, GGMLQuantizationType.Q4_1)
    steps = lost / np.maximum(_scale(blocks), np.float32(1e-12))
    levels = np.clip(np.floor((steps + np.float32(0.5)) * LEVELS), 0, LEVELS - 1)
    word = np.zeros(levels.size // 4, np.uint32)
    for part, shift in zip(levels.astype(np.uint32).reshape(-1, 4).T, _SHIFTS, strict=True):
        word |= part << np.uint32(shift)
    return np.ascontiguousarray(word.view(np.uint8).reshape(-1, 4)[:, :3]).tobytes()


def _lost(stream: memoryview) -> NDArray[np.float32]:
    """Return what `_residual` described, (groups, 32) in steps."""
    raw = np.frombuffer(stream, np.uint8).reshape(-1, 3).astype(np.uint32)
    word = raw[:, 0] | raw[:, 1] << 8 | raw[:, 2] << 16
    levels = np.stack([word >> shift & 63 for shift in _SHIFTS], 1).astype(np.float32)
    lost = (levels + np.float32(0.5)) / np.float32(LEVELS) - np.float32(0.5)
    return lost.astype(np.float32).reshape(-1, GROUP)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.pieces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--piece-mb", type=float, default=15.9)
    parser.add_argument("--no-masters", action="store_true", help="pack: the Q4_1 values only")
    args = parser.parse_args(argv)
    if args.action == "pack":
        checkpoint = torch.load(args.input, map_location="cpu")
        data = pack_checkpoint(checkpoint, not args.no_masters)
        count = write_pieces(data, args.output, args.piece_mb)
        print(f"{len(data) / 1e6:.1f} MB in {count} pieces")
    else:
        torch.save(unpack_checkpoint(read_pieces(args.input)), args.output)


if __name__ == "__main__":
    main()
