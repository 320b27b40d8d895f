"""Published models that fill in the middle: what they are, and what of them fits this machine.

No torch here, and no network. Sizes follow from the published configurations.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hf_config import SUPPORTED

QUANTS = ("none", "q8", "q4")
# Bits a weight takes; the embedding and the head stay at 8.5 under q4, see `packing`.
_BITS = {"q8": 8.5, "q4": 5.0}
# Rows of one document's cache, unrotated and rotated keys and values of each, in 2 bytes.
_CACHED_TOKENS = 2048 + 576
# What torch and the libraries take before any weight.
_BASE_BYTES = 500_000_000
# A GPU's context and captured graphs, and its libraries' kernels.
_GPU_BASE_BYTES = 1_500_000_000
# As `passes.MOST_DENSE_BYTES`, which torch would come with.
_MOST_DENSE_BYTES = 1_000_000_000
# Whose layers the C step computes.
OF_THE_STEP = (
    *("llama", "mistral", "qwen2", "qwen3", "granite", "granitemoehybrid", "starcoder2"),
    *("stablelm", "smollm3", "gemma"),
)
# Of what is there, so much may go to completions; editors and compilers want some too.
_SHARE = 0.5
# Operations a second of one core in many-row products, half of what a core with AVX-512 and
# bfloat16 was measured at: what a window that is not computed yet then waits for.
_CORE_FLOPS = 60e9
_MOST_COLD_S = 5.0


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One published model.

    Attributes:
        name: its Hugging Face id; "embedded".
        family: as `keyturn models` names its prompt format.
        model_type: as in its `config.json`.
        licence: its licence.
        layers: decoder layers; so the next ones are those of `ModelConfig`.
        hidden: hidden size.
        inner: of the MLP.
        heads: (query heads, key-value heads, dimensions of a head).
        vocab: rows of the embedding.
        tied: the head shares the embedding.
        is_gated: the MLP has three matrices, not two.
        experts: MLPs of a layer.
        terms: what keeps it from being recommended to everybody.
        note: what else to know.
        as_it_comes: its file is in blocks of 4 bits, which no quant changes.
        source: where these figures, or a copy of its `config.json`, were compared; "" is: nowhere.
    """

    name: str
    family: str
    model_type: str
    licence: str
    layers: int
    hidden: int
    inner: int
    heads: tuple[int, int, int]
    vocab: int
    tied: bool = True
    is_gated: bool = True
    experts: int = 1
    terms: str = ""
    note: str = ""
    as_it_comes: bool = False
    source: str = ""

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices."""
        queries, keys, width = self.heads
        attention = self.hidden * width * 2 * (queries + keys)
        router = self.hidden * self.experts if self.experts > 1 else 0
        mlp = (2 + self.is_gated) * self.hidden * self.inner
        return self.layers * (attention + router + self.experts * mlp)

    @property
    def end_weights(self) -> int:
        """Weights of the embedding and, if it has one of its own, the head."""
        return (1 if self.tied else 2) * self.vocab * self.hidden

    @property
    def num_weights(self) -> int:
        """All of its matrices' weights."""
        return self.layer_weights + self.end_weights

    def weight_bytes(self, quant: str, dtype_bytes: int = 2) -> int:
        """Return what the weights take under a quant, loaded."""
        if self.as_it_comes:
            return self.num_weights * 5 // 8
        if quant == "none":
            return self.num_weights * dtype_bytes
        return int(self.layer_weights * _BITS[quant] + self.end_weights * 8.5) // 8

    def needed_bytes(self, quant: str, machine: Machine) -> int:
        """Return the memory that completing with it takes: weights, one document's cache, torch.

        On a CPU products of many rows take the layers' weights as values, which stay in memory
        beside what is packed; for a large one of Llama's layers that is spared.
        """
        cached = 3 * self.layers * self.heads[1] * self.heads[2] * _CACHED_TOKENS
        if machine.gpu_bytes:
            return self.weight_bytes(quant) + cached * 2 + _GPU_BASE_BYTES
        is_packed = quant != "none" or self.as_it_comes
        dense = self.layer_weights * machine.dtype_bytes if is_packed else 0
        if self.model_type in OF_THE_STEP and dense > _MOST_DENSE_BYTES:
            dense = 0
        weights = self.weight_bytes(quant, machine.dtype_bytes)
        return weights + dense + cached * machine.dtype_bytes + _BASE_BYTES


@dataclass(frozen=True, slots=True)
class Machine:
    """What counts here.

    Attributes:
        num_cores: CPUs this process may use.
        memory_bytes: of the machine, or what its control group allows.
        dtype_bytes: of a weight as the CPU multiplies it: 2 with AVX-512 BF16 or AMX, else 4.
        gpu: the first NVIDIA GPU's name, "" if there is none.
        gpu_bytes: its memory.
    """

    num_cores: int
    memory_bytes: int
    dtype_bytes: int
    gpu: str = ""
    gpu_bytes: int = 0


_LITGPT = "github.com/Lightning-AI/litgpt, litgpt/config.py"


def _qwen(
    size: str,
    layers: int,
    hidden: int,
    inner: int,
    heads: tuple[int, int, int],
    vocab: int = 151936,
    *,
    licence: str = "Apache-2.0",
    terms: str = "",
    tied: bool = True,
) -> KnownModel:
    name, shape = f"Qwen/Qwen2.5-Coder-{size}", (layers, hidden, inner, heads, vocab, tied)
    source = f"{_LITGPT}; huggingface.co/Qwen/Qwen2.5-Coder-3B, README"
    return KnownModel(name, "Qwen2.5-Coder", "qwen2", licence, *shape, terms=terms, source=source)


KNOWN = (
    KnownModel(
        *("embedded", "keyturn-135m", "llama", "Apache-2.0", 30, 576, 1536, (9, 3, 64), 49152),
        note="for Python, JavaScript and TypeScript; in 4 bits whatever the quant",
        as_it_comes=True,
        source="its file",
    ),
    _qwen("0.5B", 24, 896, 4864, (14, 2, 64)),
    _qwen("1.5B", 28, 1536, 8960, (12, 2, 128)),
    _qwen(
        *("3B", 36, 2048, 11008, (16, 2, 128)),
        licence="Qwen Research",
        terms="not for commercial use",
    ),
    _qwen("7B", 28, 3584, 18944, (28, 4, 128), 152064, tied=False),
    KnownModel(
        *("deepseek-ai/deepseek-coder-1.3b-base", "DeepSeek-Coder", "llama", "DeepSeek"),
        *(24, 2048, 5504, (16, 16, 128), 32256, False),
        source="huggingface.co/l3lab/ntp-mathlib-st-deepseek-coder-1.3b, config.json",
    ),
    KnownModel(
        *("bigcode/starcoder2-3b", "StarCoder2", "starcoder2", "OpenRAIL-M"),
        *(30, 3072, 12288, (24, 2, 128), 49152, True, False),
        source="huggingface.co/OpenVINO/starcoder2-3b-int8-ov, config.json",
    ),
    KnownModel(
        *("ibm-granite/granite-4.0-1b-base", "Granite", "granitemoehybrid", "Apache-2.0"),
        *(40, 2048, 4096, (16, 4, 128), 100352),
        terms="for text in general, of its size Qwen2.5-Coder is the one for code",
        source="ollama.com/ibm/granite4:1b-base-q5_K_M",
    ),
    KnownModel(
        *("ibm-granite/granite-4.1-3b-base", "Granite", "granite", "Apache-2.0"),
        *(40, 2560, 8192, (40, 8, 64), 100352),
        source="ollama.com/dna5rm/granite4.1:3b-8k",
    ),
    KnownModel(
        *("JetBrains/Mellum2-12B-A2.5B-Base", "Mellum", "mellum", "Apache-2.0"),
        *(28, 2304, 896, (32, 4, 128), 98304, False),
        experts=64,
        terms="its experts are computed one by one here, slowly",
        source="transformers, MellumConfig",
    ),
    KnownModel(
        *("google/codegemma-2b", "CodeGemma", "gemma", "Gemma"),
        *(18, 2048, 16384, (8, 1, 256), 256000),
        terms="the hub asks for your consent",
        source="huggingface.co/unsloth/codegemma-2b, config.json",
    ),
    KnownModel(
        *("codellama/CodeLlama-7b-hf", "CodeLlama", "llama", "Llama 2"),
        *(32, 4096, 11008, (32, 32, 128), 32016, False),
        source=_LITGPT,
    ),
    KnownModel(
        *("ByteDance-Seed/Seed-Coder-8B-Base", "Seed-Coder", "llama", "MIT"),
        *(32, 4096, 14336, (32, 8, 128), 155136, False),
    ),
)


def id_like(name: str) -> str | None:
    """Return the Hugging Face id of a published model called by its name alone, as Ollama does."""
    wanted = name.lower().replace(":", "-")
    return next((each.name for each in KNOWN if each.name.lower().endswith(f"/{wanted}")), None)


def this_machine() -> Machine:
    """Return what is here; a GPU is asked for through `nvidia-smi`."""
    gpu, gpu_bytes = "", 0
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        gpu, _, mebibytes = done.stdout.splitlines()[0].rpartition(",")
        gpu_bytes = int(mebibytes) << 20
    has = getattr(os, "sched_getaffinity", None)
    flags = _text("/proc/cpuinfo")
    is_half = re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) is not None
    return Machine(
        len(has(0)) if has else os.cpu_count() or 1,
        _memory_bytes(),
        2 if is_half else 4,
        gpu if gpu_bytes else "",
        gpu_bytes,
    )


def _memory_bytes() -> int:
    """Return the machine's memory, or the control group's bound if that is less; 0: not known."""
    found = [
        int(kb) << 10 for kb in re.findall(r"^MemTotal:\s+(\d+)", _text("/proc/meminfo"), re.M)
    ]
    bound = _text("/sys/fs/cgroup/memory.max").strip()
    if bound.isdecimal():
        found.append(int(bound))
    return min(found, default=0)


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""


def listed(machine: Machine, on_disk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the known models as plain data.

    Each has name, family, licence, terms, note, source, `num_weights`, `bytes` of its weights and
    `needed_bytes`, by quant; `path` if it is on this disk; `is_supported`, whether its family is;
    `recommended`, a quant, and `why` for the one that suits this machine.

    Args:
        machine: what counts.
        on_disk: as `catalog.on_disk` gives it.
    """
    paths = {model["name"]: model["path"] for model in on_disk}
    chosen, quant, why = recommended(machine)
    return [
        {
            "name": model.name,
            "family": model.family,
            "licence": model.licence,
            "terms": model.terms,
            "note": model.note,
            "source": model.source,
            "num_weights": model.num_weights,
            "bytes": {
                each: model.weight_bytes(each, 2 if machine.gpu_bytes else machine.dtype_bytes)
                for each in QUANTS
            },
            "needed_bytes": {each: model.needed_bytes(each, machine) for each in QUANTS},
            "path": paths.get(model.name),
            "is_supported": model.model_type in SUPPORTED,
            "recommended": quant if model is chosen else None,
            "why": why if model is chosen else None,
        }
        for model in KNOWN
    ]


def recommended(machine: Machine) -> tuple[KnownModel, str, str]:
    """Return the model that suits a machine, the quant to load it with, and why in words.

    The largest, of those that are free to use and supported, that fits into half of the memory
    and, on a CPU, computes a window of 2,048 tokens within seconds: what is not computed yet waits
    for that. On a GPU the weights are left as they are if they fit, else q8; on a CPU q8, of which
    a decode step reads half as many bytes. q4, which costs quality, is left to the user.
    """
    embedded, *others = KNOWN
    free = [m for m in others if m.model_type in SUPPORTED and not m.terms]
    largest_first = sorted(free, key=lambda model: -model.num_weights)
    if machine.gpu_bytes:
        room = _SHARE * machine.gpu_bytes
        for model in largest_first:
            for quant in ("none", "q8"):
                needed = model.needed_bytes(quant, machine)
                if needed <= room:
                    why = f"needs {needed / 1e9:.1f} of {machine.gpu_bytes / 1e9:.0f} GB on the GPU"
                    return model, quant, f"{why}, the largest that leaves half of it free"
        return embedded, "none", "no larger one leaves half of the GPU's memory free"
    for model in largest_first:
        seconds = 2 * model.num_weights * 2048 / (_CORE_FLOPS * machine.num_cores)
        needed = model.needed_bytes("q8", machine)
        if seconds <= _MOST_COLD_S and needed <= _SHARE * machine.memory_bytes:
            why = f"{machine.num_cores} cores compute a new window in about {seconds:.0f} s"
            return model, "q8", f"{why}, and it needs {needed / 1e9:.1f} GB"
    why = f"on {machine.num_cores} cores a larger one takes too long, or half of the memory"
    return embedded, "none", why
