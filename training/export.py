#!/usr/bin/env python3
"""Write a GGUF with all matrices in Q4_1 out of packed weights.

    export.py BASE.gguf final OUT.gguf --name "Keyturn 135M"

Metadata and tokenizer come from the base GGUF. `final` is the prefix of the pieces that
`weights.py pack` wrote (their Q4_1 codes are copied, not rounded again), or a checkpoint (.pt),
which is rounded. Rows of Q and K go into llama.cpp's interleaved order.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import quants
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from model import NUM_HEADS, NUM_KV_HEADS, Model
from weights import GGUF_NAMES, read_gguf, read_pieces, unpack_checkpoint

FIM_TOKENS = {"pre": 8, "suf": 9, "mid": 10, "sep": 5}
SKIPPED = (
    "GGUF.", "quantize.", "tokenizer.ggml.fim_", "tokenizer.chat_template", "general.architecture",
    "general.file_type", "general.name", "general.quantization_version",
    "general.basename", "general.finetune",
)  # fmt: skip
FILE_TYPE_Q4_1 = 3


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put the half-split rows of each head into llama.cpp's interleaved order."""
    shape = rows.shape
    return np.ascontiguousarray(
        rows.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)
    )


def q4_1_bytes(weight: torch.Tensor) -> np.ndarray:
    """Return Q4_1 blocks as uint8 (rows, bytes of a row); values on the grid keep their codes."""
    codes, scale, minimum = (t.numpy() for t in quants.q4_1_parts(weight))
    nibbles = codes[:, :16] | codes[:, 16:] << 4
    head = [half.view(np.uint8).reshape(-1, 2) for half in (scale, minimum)]
    return np.concatenate([*head, nibbles], 1).reshape(weight.shape[0], -1)


def write_gguf(base: Path, model: Model, out: Path, name: str) -> None:
    """Write the model to OUT with the metadata of BASE."""
    writer = GGUFWriter(out, "llama")
    for field in GGUFReader(base).fields.values():
        if field.name.startswith(SKIPPED):
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_name(name)
    for key, value in FIM_TOKENS.items():
        writer.add_key_value(f"tokenizer.ggml.fim_{key}_token_id", value, GGUFValueType.UINT32)
    theirs = {v: k for k, v in GGUF_NAMES.items()}
    for full, weight in model.named().items():
        key = full.removesuffix(".weight")
        if key.startswith("model.layers."):
            _, _, layer, part = key.split(".", 3)
            target = f"blk.{layer}.{theirs[part]}.weight"
        else:
            part, target = key, theirs[key] + ".weight"
        if weight.dim() == 1:
            writer.add_tensor(target, weight.float().numpy())
            continue
        data = q4_1_bytes(weight)
        if "q_proj" in part or "k_proj" in part:
            data = permute(data, NUM_HEADS if "q_proj" in part else NUM_KV_HEADS)
        writer.add_tensor(target, data, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.add_file_type(FILE_TYPE_Q4_1)
    writer.add_quantization_version(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="GGUF whose metadata and tokenizer are taken")
    parser.add_argument("weights", help="prefix of packed pieces, or a checkpoint (.pt)")
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="Keyturn 135M: SmolLM2-135M, fill-in-the-middle")
    args = parser.parse_args()
    if args.weights.endswith(".pt"):
        state = torch.load(args.weights, map_location="cpu")["model"]
    else:
        state = unpack_checkpoint(read_pieces(args.weights), rounded=True)["model"]
    model = Model()
    model.load_state_dict(state)
    write_gguf(args.base, model, args.out, args.name)
    again, worst = read_gguf(args.out), 0.0
    for key, weight in model.named().items():
        want = quants.q4_1(weight) if weight.dim() == 2 else weight
        worst = max(worst, float((torch.from_numpy(again[key]) - want).abs().max()))
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    print(
        f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, sha256 {digest},",
        f"largest difference read back {worst:.2g}",
    )


if __name__ == "__main__":
    main()
