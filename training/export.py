#!/usr/bin/env python3
r"""Write the GGUF file that the product ships: matrices in Q4_1, norms in F32.

    python -m training.export out/final.pt keyturn.gguf

WEIGHTS is a checkpoint (.pt) or the prefix of packed pieces, whose codes are kept. The tokenizer
comes from the base, by default the embedded model; the file is then read back by the engine and
compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize
from torch import Tensor
from tqdm import tqdm

from keyturn.engine.files.catalog import EMBEDDED, resolve
from keyturn.engine.files.gguf_config import read_config
from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.stored import in_gguf
from keyturn.engine.files.weights import load_model as load_files
from keyturn.engine.model.config import ModelConfig
from keyturn.kernels.weights.linear import values_of

from .data.layouts import END, FILE_SEP, template
from .model.decoder import Model, Shape
from .model.weights import named, of_state
from .pieces import read_pieces, unpack_checkpoint

_QUANTIZATION_VERSION = 2


def write_gguf(base: Path, model: Model, out: Path, name: str) -> None:
    """Write a model with the tokenizer of another.

    Args:
        base: GGUF file whose tokenizer and constants of the architecture are taken.
        model: the weights; matrices on the Q4_1 grid keep their codes.
        out: the new file.
        name: for people.

    Raises:
        ValueError: the model's vocabulary is not the base's.
    """
    file = GGUFFile(base)
    config = _resized(read_config(file), model.shape)
    temporary = out.with_name(out.name + ".tmp")
    writer = GGUFWriter(temporary, "llama")
    _write_description(writer, name)
    _write_config(writer, config)
    _write_tokenizer(writer, file)
    for full, weight in tqdm(named(model).items(), "quantizing", unit=" tensors"):
        place = in_gguf(config, full).name
        if weight.dim() == 1:
            writer.add_tensor(place, weight.float().numpy())
        else:
            blocks = quantize(stored(config, full, weight), GGMLQuantizationType.Q4_1)
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(place, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.rename(out)


def stored(config: ModelConfig, name: str, weight: Tensor) -> np.ndarray:
    """Return a matrix with its rows in the order of the file."""
    values, order = weight.float().numpy(), in_gguf(config, name).order
    return np.ascontiguousarray(values if order is None else values[np.argsort(order)])


def _resized(config: ModelConfig, shape: Shape) -> ModelConfig:
    """Return a base's config with the sizes of another model."""
    if config.vocab_size != shape.vocabulary:
        raise ValueError(f"a vocabulary of {config.vocab_size} is not the model's: choose a --base")
    return dataclasses.replace(
        config,
        num_layers=shape.num_layers,
        hidden_size=shape.width,
        intermediate_size=shape.ff_width,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
    )


def _write_config(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.rotary_dim)


def _write_description(writer: GGUFWriter, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_author("Keyturn's authors")
    writer.add_size_label("135M")
    writer.add_license("apache-2.0")
    writer.add_license_name("Apache License 2.0")
    writer.add_languages(["en"])
    writer.add_tags(["code", "fill-in-the-middle"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "SmolLM2-135M")
    writer.add_base_model_author(0, "Hugging Face")
    writer.add_base_model_organization(0, "HuggingFaceTB")
    writer.add_base_model_repo_url(0, "https://huggingface.co/HuggingFaceTB/SmolLM2-135M")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_quantization_version(_QUANTIZATION_VERSION)


def _write_tokenizer(writer: GGUFWriter, base: GGUFFile) -> None:
    """Write the base's tokenizer with the marks and ends that the model was trained on."""

    def value(key: str) -> Any:  # noqa: ANN401
        return base.metadata[f"tokenizer.ggml.{key}"]

    writer.add_tokenizer_model(value("model"))
    writer.add_tokenizer_pre(value("pre"))
    writer.add_token_list(value("tokens"))
    writer.add_token_types(value("token_type").tolist())
    writer.add_token_merges(value("merges"))
    writer.add_bos_token_id(value("bos_token_id"))
    writer.add_unk_token_id(value("unknown_token_id"))
    writer.add_pad_token_id(value("padding_token_id"))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END)
    marks = template()
    ids = {"pre": marks.prefix_id, "suf": marks.suffix_id, "mid": marks.middle_id, "sep": FILE_SEP}
    for mark, token_id in ids.items():
        writer.add_uint32(f"tokenizer.ggml.fim_{mark}_token_id", token_id)


def largest_difference(model: Model, path: Path) -> float:
    """Return how far what the engine reads is from the model's rounded weights; 0 if exact."""
    read, worst = load_files(path, torch.float32).tensors, 0.0
    for name, weight in named(model).items():
        want = weight.float()
        if weight.dim() == 2:
            kind = GGMLQuantizationType.Q4_1
            want = torch.from_numpy(dequantize(quantize(want.numpy(), kind), kind))
        found = values_of(read[name], torch.float32)
        worst = max(worst, float((found - want).abs().max()))
    return worst


def load_rounded(weights: str) -> Model:
    """Load a checkpoint (.pt), or packed pieces with their exact Q4_1 values."""
    if weights.endswith(".pt"):
        return of_state(torch.load(weights, map_location="cpu")["model"])
    return of_state(unpack_checkpoint(read_pieces(weights), rounded=True)["model"])


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", help="checkpoint (.pt), or prefix of packed pieces")
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", default=EMBEDDED, help="GGUF whose tokenizer is taken")
    parser.add_argument("--name", default="Keyturn 135M")
    args = parser.parse_args(argv)
    model = load_rounded(args.weights)
    write_gguf(resolve(args.base), model, args.out, args.name)
    difference = largest_difference(model, args.out)
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")
    if difference:
        raise SystemExit(f"read back with a difference of {difference:.2g}: do not use it")


if __name__ == "__main__":
    main()
