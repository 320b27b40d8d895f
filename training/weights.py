#!/usr/bin/env python3
"""Weights in files: GGUF, checkpoints, and both packed for a machine that takes small pieces.

weights.py squeeze IN.gguf OUT --piece-mb 15      a GGUF, losslessly, in pieces OUT.000 ...
weights.py restore OUT IN.gguf                    the same file again
weights.py pack final.pt OUT                      exact Q4_1, then what it lost (6 bits)
weights.py unpack OUT final.pt                    masters again, to 1/128 of a step
"""

from __future__ import annotations

import argparse
import json
import lzma
import struct
import zlib
from pathlib import Path

import numpy as np
import quants
import torch
from model import NUM_HEADS, NUM_KV_HEADS, Model

GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
BLOCK_BYTES = {3: 20, 8: 34}  # of 32 weights: Q4_1, Q8_0
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


# ---------------------------------------------------------------- GGUF


def gguf_tensors(data: np.ndarray) -> tuple[list[tuple[str, list[int], int, int]], int]:
    """Return (name, shape, type, offset) of a GGUF's tensors, and where their data begins."""
    at = 4

    def take(code: str):  # noqa: ANN202
        nonlocal at
        size = struct.calcsize("<" + code)
        (value,) = struct.unpack("<" + code, data[at : at + size].tobytes())
        at += size
        return value

    def text() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size : at].tobytes().decode("utf-8", "replace")

    def skip(kind: int):  # noqa: ANN202
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = take("I"), take("Q")
            return [skip(inner) for _ in range(count)]
        return take(_SCALARS[kind])

    if data[:4].tobytes() != b"GGUF":
        raise ValueError("not a GGUF file")
    take("I")
    num_tensors, num_entries = take("Q"), take("Q")
    alignment = 32
    for _ in range(num_entries):
        key = text()
        value = skip(take("I"))
        alignment = value if key == "general.alignment" else alignment
    infos = []
    for _ in range(num_tensors):
        name = text()
        shape = [take("Q") for _ in range(take("I"))][::-1]
        infos.append((name, shape, take("I"), take("Q")))
    base = (at + alignment - 1) // alignment * alignment
    return [(name, shape, kind, base + offset) for name, shape, kind, offset in infos], base


def num_bytes(shape: list[int], kind: int) -> int:
    """Return how many bytes a tensor takes."""
    count = int(np.prod(shape))
    return 4 * count if kind == 0 else count // 32 * BLOCK_BYTES[kind]


def _dequantize(raw: np.ndarray, shape: list[int], kind: int) -> np.ndarray:
    def half(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x).view(np.float16).astype(np.float32)

    if kind == 0:
        return raw.view(np.float32).reshape(shape).copy()
    blocks = raw.reshape(-1, BLOCK_BYTES[kind])
    if kind == 8:
        return (np.ascontiguousarray(blocks[:, 2:]).view(np.int8) * half(blocks[:, :2])).reshape(
            shape
        )
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1).astype(np.float32)
    return (codes * half(blocks[:, :2]) + half(blocks[:, 2:4])).reshape(shape)


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    """Return fp32 weights under transformers' names; rows of Q and K back in half-split order."""
    data = np.memmap(path, np.uint8, "r")
    out = {}
    for name, shape, kind, offset in gguf_tensors(data)[0]:
        weight = _dequantize(
            np.asarray(data[offset : offset + num_bytes(shape, kind)]), shape, kind
        )
        parts = name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                heads = NUM_HEADS if parts[2] == "attn_q" else NUM_KV_HEADS
                weight = weight.reshape(heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
            out[f"model.layers.{parts[1]}.{GGUF_NAMES[parts[2]]}.weight"] = weight
        elif parts[0] in GGUF_NAMES:
            out[GGUF_NAMES[parts[0]] + ".weight"] = weight
    return out


# ---------------------------------------------------------------- pieces


def write_pieces(data: bytes, out: str, piece_mb: float) -> None:
    """Write OUT.000, OUT.001, ..."""
    size = int(piece_mb * 2**20)
    for i in range(0, len(data), size):
        Path(f"{out}.{i // size:03d}").write_bytes(data[i : i + size])
    print(f"{len(data) / 1e6:.1f} MB in {-(-len(data) // size)} pieces", flush=True)


def read_pieces(prefix: str) -> bytes:
    """Return what `write_pieces` wrote."""
    path = Path(prefix)
    pieces = sorted(path.parent.glob(path.name + ".[0-9][0-9][0-9]"))
    if not pieces:
        raise FileNotFoundError(f"no pieces {prefix}.000 ...")
    return b"".join(p.read_bytes() for p in pieces)


def _join(streams: list[bytes], **head: object) -> bytes:
    header = json.dumps({**head, "sizes": [len(s) for s in streams]}).encode()
    return len(header).to_bytes(4, "little") + header + b"".join(streams)


def _split(data: bytes) -> tuple[dict, list[memoryview]]:
    size = int.from_bytes(data[:4], "little")
    head, at, streams = json.loads(data[4 : 4 + size]), 4 + size, []
    for length in head["sizes"]:
        streams.append(memoryview(data)[at : at + length])
        at += length
    return head, streams


def _huffman(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def squeeze_gguf(path: Path) -> bytes:
    """Pack a GGUF losslessly: nibbles by Huffman codes, scales by planes, the rest by LZMA."""
    data = np.fromfile(path, np.uint8)
    tensors, base = gguf_tensors(data)
    codes, scales, rest = [], [], [data[:base].tobytes()]
    end = base
    for _, shape, kind, offset in sorted(tensors, key=lambda t: t[3]):
        rest.append(data[end:offset].tobytes())  # padding
        end = offset + num_bytes(shape, kind)
        raw = data[offset:end]
        if kind == 0:
            rest.append(raw.tobytes())
            continue
        blocks, head = raw.reshape(-1, BLOCK_BYTES[kind]), 4 if kind == 3 else 2
        scales.append(np.ascontiguousarray(blocks[:, :head].T).tobytes())
        body = blocks[:, head:]
        if kind == 3:
            body = np.concatenate([body & 15, body >> 4], 1)
        codes.append(np.ascontiguousarray(body).tobytes())
    rest.append(data[end:].tobytes())
    streams = [_huffman(c) for c in codes] + [
        lzma.compress(b"".join(scales)),
        lzma.compress(b"".join(rest)),
    ]
    return _join(streams, base=base, size=len(data))


def restore_gguf(packed: bytes) -> np.ndarray:
    """Return the bytes of the GGUF that `squeeze_gguf` packed."""
    head, streams = _split(packed)
    rest, scales = (
        np.frombuffer(lzma.decompress(streams[-1]), np.uint8),
        lzma.decompress(streams[-2]),
    )
    scales, base = np.frombuffer(scales, np.uint8), head["base"]
    data = np.empty(head["size"], np.uint8)
    data[:base] = rest[:base]
    end = at_rest = base
    at_scale = at_code = 0
    for _, shape, kind, offset in sorted(gguf_tensors(data[:base])[0], key=lambda t: t[3]):
        data[end:offset] = rest[at_rest : at_rest + offset - end]
        at_rest += offset - end
        end = offset + num_bytes(shape, kind)
        if kind == 0:
            data[offset:end] = rest[at_rest : at_rest + end - offset]
            at_rest += end - offset
            continue
        body = np.frombuffer(zlib.decompress(streams[at_code], -15), np.uint8).reshape(-1, 32)
        at_code += 1
        width = 4 if kind == 3 else 2
        planes = scales[at_scale : at_scale + width * len(body)].reshape(width, -1)
        at_scale += width * len(body)
        body = body[:, :16] | body[:, 16:] << 4 if kind == 3 else body
        data[offset:end] = np.concatenate([planes.T, body], 1).ravel()
    data[end:] = rest[at_rest:]
    return data


# ---------------------------------------------------------------- checkpoints


def load_model(path: str | Path) -> Model:
    """Load a .gguf, a checkpoint (.pt), packed pieces (the prefix), or "random"."""
    path, model = Path(path), Model()
    if path.name == "random":
        return model
    if path.suffix == ".gguf":
        return model.load_named(read_gguf(path))
    if path.suffix == ".pt":
        model.load_state_dict(torch.load(path, map_location="cpu")["model"])
        return model
    model.load_state_dict(unpack_checkpoint(read_pieces(str(path)))["model"])
    return model


def pack_checkpoint(checkpoint: dict, with_masters: bool = True) -> bytes:
    """Pack {"model": state, ...}: Q4_1 parts of all matrices first, what they lost last."""
    state, streams, residuals, names = checkpoint["model"], [], [], []
    plain = []
    for name, weight in state.items():
        names.append((name, list(weight.shape)))
        if weight.dim() == 1:
            plain.append(weight.float().numpy().tobytes())
            continue
        codes, scale, minimum = quants.q4_1_parts(weight)
        nibbles = codes[:, :16] | codes[:, 16:] << 4
        streams += [nibbles.numpy().tobytes(), scale.numpy().tobytes(), minimum.numpy().tobytes()]
        if with_masters:
            lost = (
                quants.residual_codes(weight, codes, scale, minimum)
                .view(-1, 4)
                .numpy()
                .astype(np.uint32)
            )
            word = lost[:, 0] | lost[:, 1] << 6 | lost[:, 2] << 12 | lost[:, 3] << 18
            residuals.append(
                np.ascontiguousarray(word.view(np.uint8).reshape(-1, 4)[:, :3]).tobytes()
            )
    more = {k: v for k, v in checkpoint.items() if k != "model"}
    return _join(
        [*streams, b"".join(plain), *residuals], names=names, masters=with_masters, more=more
    )


def unpack_checkpoint(data: bytes, rounded: bool = False) -> dict:
    """Return the checkpoint; `rounded`: its exact Q4_1 values instead of the masters."""
    head, streams = _split(data)
    matrices = [n for n in head["names"] if len(n[1]) == 2]
    plain = np.frombuffer(streams[3 * len(matrices)], np.float32)
    state, i, at = {}, 0, 0
    for name, shape in head["names"]:
        count = int(np.prod(shape))
        if len(shape) == 1:
            state[name] = torch.from_numpy(plain[at : at + count].copy())
            at += count
            continue
        nibbles = torch.from_numpy(np.frombuffer(streams[3 * i], np.uint8).reshape(-1, 16).copy())
        halves = [
            torch.from_numpy(np.frombuffer(streams[3 * i + k], np.float16).copy())[:, None]
            for k in (1, 2)
        ]
        codes = torch.cat([nibbles & 15, nibbles >> 4], 1)
        if head["masters"] and not rounded:
            raw = (
                np.frombuffer(streams[3 * len(matrices) + 1 + i], np.uint8)
                .reshape(-1, 3)
                .astype(np.uint32)
            )
            word = raw[:, 0] | raw[:, 1] << 8 | raw[:, 2] << 16
            lost = torch.from_numpy(
                np.stack([word >> s & 63 for s in (0, 6, 12, 18)], 1).astype(np.uint8)
            )
            values = quants.with_residual(codes, *halves, lost.view(-1, 32))
        else:
            values = quants.q4_1_values(codes, *halves)
        state[name] = values.view(shape)
        i += 1
    return {"model": state, **head["more"]}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("squeeze", "restore", "pack", "unpack"))
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--piece-mb", type=float, default=15.9)
    parser.add_argument("--no-masters", action="store_true", help="pack: the Q4_1 values only")
    args = parser.parse_args()
    if args.action == "squeeze":
        write_pieces(squeeze_gguf(Path(args.input)), args.output, args.piece_mb)
    elif args.action == "restore":
        restore_gguf(read_pieces(args.input)).tofile(args.output)
    elif args.action == "pack":
        checkpoint = torch.load(args.input, map_location="cpu")
        write_pieces(pack_checkpoint(checkpoint, not args.no_masters), args.output, args.piece_mb)
    else:
        torch.save(unpack_checkpoint(read_pieces(args.input)), args.output)


if __name__ == "__main__":
    main()
