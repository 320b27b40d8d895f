"""The rival of the decode benchmark: transformers with a static cache and torch.compile."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from keyturn.engine.model.config import ModelConfig


def measure(
    shape: ModelConfig, context: int, mode: str, repeats: int, device: torch.device
) -> float:
    """Return the median microseconds of a step after `context` tokens, random bf16 weights.

    The prompt is computed eagerly, the steps are compiled, as `generate` does; with the modes
    "reduce-overhead" and "max-autotune" they run as CUDA graphs.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache

    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tied_embeddings,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    takes_position = "cache_position" in inspect.signature(model.forward).parameters
    warm_up = 4
    cache = StaticCache(config=config, max_cache_len=context + warm_up + repeats)
    token_ids = torch.randint(0, shape.vocab_size, (1, context), device=device)

    def call(forward: Any, ids: torch.Tensor, position: torch.Tensor) -> None:  # noqa: ANN401
        extra = {"cache_position": position} if takes_position else {}
        positions = position[None]
        forward(
            ids,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        )

    with torch.no_grad():
        call(model, token_ids, torch.arange(context, device=device))
        forward = torch.compile(model.forward, mode=mode) if mode != "eager" else model.forward
        times = []
        for number in range(warm_up + repeats):
            position = torch.tensor([context + number], device=device)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            call(forward, token_ids[:, :1], position)
            end.record()
            torch.cuda.synchronize(device)
            if number >= warm_up:
                times.append(1e3 * start.elapsed_time(end))
    return float(torch.tensor(times).median())
