"""What a GGUF file says of its model: the config, the tensors' names, the tokenizer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, normalizers

from ..model.config import ModelConfig
from ..tokens import pre_tokenizers
from ..wire.errors import ModelLoadError
from .gguf_file import GGUFFile
from .hf_config import check_config

# Of the architectures that the file format knows, those that are one decoder with other sizes.
SUPPORTED = ("llama", "qwen2")

_ROPE_FACTORS = "rope_freqs.weight"
_CONTROL, _USER_DEFINED = 3, 4  # token types: special, and text that is never split


def row_order(config: ModelConfig, name: str) -> NDArray[np.int64] | None:
    """Return where a tensor's rows lie in the file, None where they lie as they should.

    llama.cpp rotates neighbouring dimensions in this one architecture, and so its converter
    interleaves the two halves of each head's query and key rows.

    Args:
        config: the model's shape.
        name: a Hugging Face name.
    """
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if config.family != "llama" or heads is None:
        return None
    rows = np.arange(heads * config.head_dim).reshape(heads, config.head_dim // 2, 2)
    return rows.swapaxes(1, 2).ravel()


def read_config(file: GGUFFile) -> ModelConfig:
    """Read the metadata.

    Raises:
        ModelLoadError: it is incomplete, or of an architecture or variant that is not supported.
    """
    family = file.metadata.get("general.architecture")
    if family not in SUPPORTED:
        raise ModelLoadError(
            f"{file.path}: architecture {family!r} is not supported; use one of "
            f"{', '.join(SUPPORTED)}"
        )
    if file.metadata.get(f"{family}.expert_count"):
        raise ModelLoadError(f"{file.path}: mixtures of experts are not supported; use another")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise file.damaged("tensor 'token_embd.weight' is missing")

    def value(key: str, default: Any = None) -> Any:  # noqa: ANN401
        found = file.metadata.get(f"{family}.{key}", default)
        if isinstance(found, np.ndarray) and len(set(found.tolist())) == 1:
            found = found.tolist()[0]
        if found is None:
            raise file.damaged(f"'{family}.{key}' is missing")
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise ModelLoadError(
                f"{file.path}: '{family}.{key}' is not one number; use another model"
            )
        return found

    hidden, heads = value("embedding_length"), value("attention.head_count")
    head_dim = value("attention.key_length", hidden // heads if heads else 0)
    norm, epsilon = "rms", "attention.layer_norm_rms_epsilon"
    if f"{family}.{epsilon}" not in file.metadata:
        if f"{family}.attention.layer_norm_epsilon" in file.metadata:
            norm, epsilon = "layer", "attention.layer_norm_epsilon"
    window = value("attention.sliding_window", 0)
    config = ModelConfig(
        family=family,
        num_layers=value("block_count"),
        hidden_size=hidden,
        intermediate_size=value("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=embedding.shape[0],
        max_positions=value("context_length"),
        norm_eps=float(value(epsilon)),
        rope_theta=float(value("rope.freq_base", 10000.0)),
        rotary_dim=value("rope.dimension_count", head_dim),
        rope_interleaved=False,
        rope_scaling=_rope_scaling(file, family),
        tied_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        norm=norm,
        norm_bias="blk.0.attn_norm.bias" in file.tensors,
        activation="silu",  # what these architectures mean; files do not say it
        is_gated=True,
        is_parallel=bool(file.metadata.get(f"{family}.use_parallel_residual")),
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        sliding_windows=(window,) if 0 < window < value("context_length") else (),
        rope_thetas=(),
    )
    check_config(file.path, config)
    if config.rotary_dim != config.head_dim:
        raise ModelLoadError(
            f"{file.path}: partial rotation ({config.rotary_dim} of {config.head_dim}) is not "
            "supported in GGUF; use the model's safetensors"
        )
    return config


def _rope_scaling(file: GGUFFile, family: str) -> dict[str, Any] | None:
    """Return the rotary scaling as Hugging Face spells it."""
    prefix = f"{family}.rope.scaling."
    given = {key[len(prefix) :]: v for key, v in file.metadata.items() if key.startswith(prefix)}
    kind = given.get("type", "none")
    factor = given.get("factor", file.metadata.get(f"{family}.rope.scale_linear", 1.0))
    if "type" not in given and factor != 1.0:
        kind = "linear"  # files made before the type was written down
    factors = file.tensors.get(_ROPE_FACTORS)
    if kind == "none":
        if factors is None:
            return None
        if len(factors.shape) != 1:
            raise file.damaged(f"tensor '{_ROPE_FACTORS}' has the shape {list(factors.shape)}")
        divisors = file.tensor(_ROPE_FACTORS, torch.float32).tolist()
        return {"rope_type": "gguf_factors", "factors": divisors}
    if kind not in ("linear", "yarn") or factors is not None:
        raise ModelLoadError(
            f"{file.path}: rotary scaling {kind!r} is not supported here; use the model's "
            "safetensors"
        )
    if not isinstance(factor, float | int) or not 0 < factor < 1e6:
        raise file.damaged(f"a rotary scaling factor of {factor!r}")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn":
        trained = given.get("original_context_length")
        if trained is not None:
            scaling["original_max_position_embeddings"] = trained
        attention = given.get("attn_factor", 1.0)
        if attention != 1.0:  # llama.cpp multiplies it into YaRN's own factor
            scaling["attention_factor"] = attention * (1 + 0.1 * math.log(factor))
        for key in ("beta_fast", "beta_slow"):
            if f"yarn_{key}" in given:
                scaling[key] = given[f"yarn_{key}"]
    return scaling


def fim_marks(file: GGUFFile) -> dict[str, int]:
    """Return the fill-in-the-middle marks that the metadata names: "prefix", "suffix", "middle"."""
    marks = {}
    for key in ("prefix", "suffix", "middle"):
        for name in (f"fim_{key[:3]}", key):  # the second in files made before autumn 2024
            found = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
            if isinstance(found, int):
                marks.setdefault(key, found)
    return marks


def build_tokenizer(file: GGUFFile) -> tokenizers.Tokenizer:
    """Build the tokenizer that the metadata describes.

    Raises:
        ModelLoadError: it is of a kind that can only be had from the model's `tokenizer.json`.
    """
    metadata, remedy = file.metadata, "put the model's tokenizer.json beside it"
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelLoadError(f"{file.path}: a tokenizer of kind {kind!r} is not built in; {remedy}")
    name = metadata.get("tokenizer.ggml.pre", "default")
    pre_tokenizer = pre_tokenizers.named(name)
    if pre_tokenizer is None:
        raise ModelLoadError(f"{file.path}: pre-tokenizer {name!r} is not built in; {remedy}")
    words, merges, types = (
        metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges", "token_type")
    )
    if not isinstance(words, list) or not isinstance(merges, list):
        raise file.damaged("the vocabulary is missing")
    if types is None:
        types = np.zeros(len(words), np.int32)
    if not isinstance(types, np.ndarray) or len(types) != len(words):
        raise file.damaged("the vocabulary's token types do not fit it")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        model = models.BPE(
            vocab={word: token_id for token_id, word in enumerate(words)},
            merges=pairs,  # pyright: ignore[reportArgumentType]
            ignore_merges=name in pre_tokenizers.WHOLE_WORD_NAMES,
        )
    except Exception as error:  # the library raises nothing narrower
        raise file.damaged(f"vocabulary: {str(error).splitlines()[0]}") from None
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if name in pre_tokenizers.NFC_NAMES:
        tokenizer.normalizer = normalizers.NFC()
    special = [words[index] for index in np.flatnonzero(types == _CONTROL)]
    whole = [words[index] for index in np.flatnonzero(types == _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in whole])
    return tokenizer
