"""Weights from any file into the training model and back to the names of transformers' Llama.

GGUF files and folders of safetensors are read by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from keyturn.engine.files.catalog import resolve
from keyturn.engine.files.weights import load_model as load_files
from keyturn.kernels.weights.linear import values_of

from ..pieces import read_pieces, unpack_checkpoint
from .decoder import TINY, Model, Shape

RANDOM = {"random": Shape(), "random-tiny": TINY}


def load_model(weights: str | Path) -> Model:
    """Load a model with float32 weights, on the CPU.

    Args:
        weights: what `keyturn --model` takes ("embedded", a .gguf file, a folder, an id in the
            local cache of Hugging Face), a checkpoint (.pt), the prefix of packed pieces,
            "random", or "random-tiny" for a test.

    Raises:
        EngineError: the engine cannot find or read it.
        ValueError: it is a model of another kind.
    """
    name = str(weights)
    if name in RANDOM:
        return Model(RANDOM[name])
    if name.endswith(".pt"):
        return of_state(torch.load(name, map_location="cpu")["model"])
    if Path(name + ".000").is_file():
        return of_state(unpack_checkpoint(read_pieces(name))["model"])
    files = load_files(resolve(name), torch.float32)
    tensors = {name: values_of(part, torch.float32) for name, part in files.tensors.items()}
    return of_state(_fused(tensors, files.config.num_layers), Shape.of_config(files.config))


def of_state(state: dict[str, Tensor], shape: Shape | None = None) -> Model:
    """Return the model of a checkpoint's weights."""
    model = Model(shape or Shape.of_state(state))
    model.load_state_dict(state)
    return model


def named(model: Model) -> dict[str, Tensor]:
    """Return a model's weights under transformers' names, as `load_model` of the engine does."""
    out = {"model.embed_tokens": model.embedding, "model.norm": model.norm}
    state, split = model.state_dict(), model.shape.qkv_split
    for i in range(model.shape.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        out[theirs + "input_layernorm"] = state[ours + "norm1"]
        out[theirs + "post_attention_layernorm"] = state[ours + "norm2"]
        for letter, part in zip("qkv", state[ours + "qkv"].split(split), strict=True):
            out[f"{theirs}self_attn.{letter}_proj"] = part
        out[theirs + "self_attn.o_proj"] = state[ours + "o"]
        gate, up = state[ours + "gate_up"].chunk(2)
        out[theirs + "mlp.gate_proj"], out[theirs + "mlp.up_proj"] = gate, up
        out[theirs + "mlp.down_proj"] = state[ours + "down"]
    return {name + ".weight": weight.detach() for name, weight in out.items()}


def _fused(weights: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Return the state that weights under transformers' names make."""

    def joined(prefix: str, *names: str) -> Tensor:
        return torch.cat([weights[f"{prefix}{name}.weight"] for name in names])

    state = {
        "embedding": weights["model.embed_tokens.weight"],
        "norm": weights["model.norm.weight"],
    }
    for i in range(num_layers):
        theirs, ours = f"model.layers.{i}.", f"layers.{i}."
        attention = [f"self_attn.{letter}_proj" for letter in "qkv"]
        state[ours + "norm1"] = weights[theirs + "input_layernorm.weight"]
        state[ours + "norm2"] = weights[theirs + "post_attention_layernorm.weight"]
        state[ours + "qkv"] = joined(theirs, *attention)
        state[ours + "o"] = weights[theirs + "self_attn.o_proj.weight"]
        state[ours + "gate_up"] = joined(theirs, "mlp.gate_proj", "mlp.up_proj")
        state[ours + "down"] = weights[theirs + "mlp.down_proj.weight"]
    return state
