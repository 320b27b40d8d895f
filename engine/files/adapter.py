"""LoRA adapters as PEFT saves them: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...kernels.weights.low_rank import LowRank
from ..model.config import ModelConfig
from ..model.tensors import expected_shapes
from ..wire.errors import ModelLoadError, ModelNotFound
from .catalog import PICKLE
from .hf_config import read_json
from .stored import in_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(
    r"base_model\.model\.(model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj)\.lora_(A|B)\.weight"
)
# What changes what the two factors mean, or comes beside them.
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "biases of the factors",
    "modules_to_save": "modules that were trained as a whole",
    "trainable_token_indices": "trained embeddings",
    "target_parameters": "parameters that are no projection",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "fan_in_fan_out": "transposed weights",
    "megatron_config": "Megatron's layers",
}
# Ways to begin that change the model's own weights as well.
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter on the disk, as it is now.

    Attributes:
        folder: of its files.
        written_ns: when each of them was written.
    """

    folder: Path
    written_ns: tuple[int, ...]


def find_adapter(name: str) -> AdapterFiles:
    """Return the adapter in a folder.

    Raises:
        ModelNotFound: there is none.
    """
    folder = Path(name).expanduser().absolute()
    if not (folder / CONFIG).is_file():
        raise ModelNotFound(
            f"adapter '{name}': {folder} holds no {CONFIG}; give a folder that PEFT saved"
        )
    files = [folder / file for file in (CONFIG, WEIGHTS) if (folder / file).is_file()]
    return AdapterFiles(folder, tuple(file.stat().st_mtime_ns for file in files))


def read_adapter(folder: Path, config: ModelConfig) -> dict[str, LowRank]:
    """Read an adapter for a model.

    Args:
        folder: that PEFT saved.
        config: the model's.

    Returns:
        The name of each projection that it updates, such as `model.layers.0.self_attn.q_proj`, and
        the update, float32 on the CPU.

    Raises:
        ModelLoadError: it is no LoRA adapter, of a kind that is not served, of another model, or
            damaged.
    """
    given = read_json(folder / CONFIG)
    _refuse_kinds(folder, given)
    shapes = expected_shapes(config)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _tensors(folder):
        found = _NAME.fullmatch(name)
        if found is None:
            raise ModelLoadError(
                f"{folder}: the tensor '{name:.120}' is of no factor that is served; use an "
                "adapter of the projections q, k, v, o, gate, up and down"
            )
        factors.setdefault(found[1], {})[found[2]] = tensor.float()
    if not factors:
        raise ModelLoadError(f"{folder / WEIGHTS} holds no factors; save the adapter again")
    updates = {}
    for name, pair in factors.items():
        rows, columns = shapes.get(f"{name}.weight", (0, 0))
        rank = len(pair["A"]) if "A" in pair else 0
        is_fit = (
            rank > 0
            and pair["A"].shape == (rank, columns)
            and "B" in pair
            and pair["B"].shape == (rows, rank)
        )
        if not is_fit or config.experts is not None:
            told = ", ".join(f"{key} {list(each.shape)}" for key, each in sorted(pair.items()))
            raise ModelLoadError(
                f"{folder}: {told} of '{name}' do not fit the model's matrix of {rows} rows and "
                f"{columns} columns; use an adapter of this model"
            )
        # What a family's weights are multiplied with on their way into memory.
        own = in_safetensors(config, f"{name}.weight").scale
        updates[name] = LowRank(pair["A"], pair["B"] * (own * _scale(folder, given, name, rank)))
    return updates


def _refuse_kinds(folder: Path, given: dict[str, Any]) -> None:
    kind = given.get("peft_type")
    if kind != "LORA":
        raise ModelLoadError(f"{folder}: {kind!r:.40} is no LoRA adapter; use one, or none")
    words = [words for name, words in _REFUSED.items() if given.get(name)]
    if given.get("bias", "none") != "none":
        words.append("trained biases")
    start = str(given.get("init_lora_weights", True)).lower()
    if start.startswith(_OTHER_BASE):
        words.append(f"weights that began as {start}")
    if words:
        raise ModelLoadError(
            f"{folder}: {', '.join(words)} are not served; merge the adapter into the model with "
            "PEFT, or train a plain LoRA"
        )


def _tensors(folder: Path) -> list[tuple[str, torch.Tensor]]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (pickle := folder / "adapter_model.bin").is_file():
            raise ModelLoadError(f"{pickle} {PICKLE}")
        raise ModelLoadError(f"{folder} has no {WEIGHTS}; save the adapter again")
    try:
        with safe_open(path, framework="pt") as file:
            return [(name, file.get_tensor(name).clone()) for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is damaged or incomplete ({error}); save it again") from None


def _scale(folder: Path, given: dict[str, Any], name: str, rank: int) -> float:
    """Return what a product is multiplied by: alpha over the rank, or over its root (rsLoRA)."""
    alpha = given.get("lora_alpha")
    patterns = given.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        # As PEFT has it: a regular expression for the end of a module's name.
        if re.match(rf"(.*\.)?({re.escape(pattern)})$", name) or name.endswith(f".{pattern}"):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e6:
        raise ModelLoadError(f"{folder / CONFIG}: lora_alpha is {alpha!r:.40}; save it again")
    return alpha / (math.sqrt(rank) if given.get("use_rslora") else rank)
