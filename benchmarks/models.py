"""How soon a model is there, and what memory that takes: each quantization, first and second start.

A model of random weights in a published shape is written to a folder of its own, and the product's
caches (packed weights; on a GPU compiled kernels) lie in another, empty before each first start.
Every start is a fresh process; times count from before it, and memory over what it held before it
loaded anything.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

QUANTS = ("none", "q8", "q4")
PLANES = ("b4",)
# Below it what a tokenizer takes counts for more than the weights.
_MUCH = 500_000_000
_FILES_OF = harness.ROOT / "engine" / "embedded"
# What the child prints: seconds since the parent began, bytes, and pieces by name.
START = """
import json, os, sys, threading, time
began, model, quant, device, prompt, pieces = json.loads(sys.argv[1])
def since():
    return time.time() - began
found = {"python": since()}
import torch
found["torch"] = since()
from keyturn.engine.engine import Engine
from keyturn.engine.wire.config import CompletionParams, EngineConfig
engine = Engine(EngineConfig(device, "auto", 0, 1 << 30, 0, 256, quant))
is_gpu = engine.device.type == "cuda"
found["engine"] = since()
def anonymous():
    size, resident, shared, *_ = map(int, open("/proc/self/statm").read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
before, most, is_loaded = anonymous(), 0, threading.Event()
if is_gpu:
    torch.cuda.reset_peak_memory_stats()
    device_before = torch.cuda.memory_allocated()
def watch():
    global most
    while not is_loaded.wait(0.002):
        most = max(most, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
engine.load(model)
found["loaded"] = since()
is_loaded.set()
watcher.join()
found["anonymous_bytes"] = max(most, anonymous()) - before
found["device_bytes"] = torch.cuda.max_memory_allocated() - device_before if is_gpu else 0
session = engine.open("d", prompt, path="a.py", model=model, policy="repair")
params = CompletionParams(1, 0.0, 1.0, 0, (), 0.0)
session.complete(len(prompt), params, int)
found["first_token"] = since()
if pieces:
    found["pieces"] = []
    while True:
        start = time.time()
        if not engine.warm():
            break
        found["pieces"].append(time.time() - start)
    found["warm"] = since()
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a published Qwen2.5-Coder, called as those of `ModelConfig`."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int = 151936

    def config(self) -> dict[str, Any]:
        """Return its `config.json`."""
        return {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "eos_token_id": 0,
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every tensor."""
        hidden, rows = self.hidden, self.heads * self.head_dim
        keys = self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab, hidden),
            "model.norm.weight": (hidden,),
        }
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            for name, count in (("q", rows), ("k", keys), ("v", keys)):
                shapes[f"{at}self_attn.{name}_proj.weight"] = (count, hidden)
                shapes[f"{at}self_attn.{name}_proj.bias"] = (count,)
            shapes[f"{at}self_attn.o_proj.weight"] = (hidden, rows)
            shapes[f"{at}mlp.gate_proj.weight"] = (self.inner, hidden)
            shapes[f"{at}mlp.up_proj.weight"] = (self.inner, hidden)
            shapes[f"{at}mlp.down_proj.weight"] = (hidden, self.inner)
            for name in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{at}{name}.weight"] = (hidden,)
        return shapes


SHAPES = {
    "tiny": Shape(4, 256, 512, 4, 2, 64, 49152),
    "0.5B": Shape(24, 896, 4864, 14, 2, 64),
    "1.5B": Shape(28, 1536, 8960, 12, 2, 128),
}


def planes_bytes(shape: Shape, bits: int) -> int:
    """Return what a model takes whose layers' matrices are bit planes, and the rest bfloat16.

    A scale in fp16 stands for 128 columns, of matrices with another number for 64 or 32.
    """
    total = 0
    for name, size in shape.tensors().items():
        if "_proj.weight" not in name:
            total += 2 * math.prod(size)
            continue
        group = next(group for group in (128, 64, 32) if size[1] % group == 0)
        total += math.prod(size) * bits // 8 + 2 * math.prod(size) // group
    return total


def write_model(folder: Path, shape: Shape, seed: int) -> int:
    """Write random bfloat16 weights in a shape, in files of some layers each; return how many."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    shutil.copy(_FILES_OF / "tokenizer.json", folder)
    shutil.copy(_FILES_OF / "fim.json", folder)
    random = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    count = 0
    for name, size in shape.tensors().items():
        parts = name.split(".")
        file = f"model-{int(parts[2]) // 4 + 1 if parts[1] == 'layers' else 0:05}.safetensors"
        weight_map[name] = file
        files.setdefault(file, {})[name] = size
    for file, wanted in files.items():
        made = {}
        for name, size in wanted.items():
            values = torch.empty(size, dtype=torch.bfloat16)
            values.normal_(0, 0.02, generator=random)
            made[name] = values + 1 if name.endswith("norm.weight") else values
            count += values.numel()
        save_file(made, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return count


def start(model: str, quant: str, device: str, caches: Path, *, pieces: bool) -> dict[str, Any]:
    """Start a fresh process that loads a model and completes one token; return what it says."""
    environment = os.environ | {
        "XDG_CACHE_HOME": str(caches),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "CUDA_CACHE_PATH": str(caches / "cuda"),
    }
    asked = json.dumps([time.time(), model, quant, device, "def add(a, b):\n    return ", pieces])
    done = subprocess.run(
        [sys.executable, "-c", START, asked], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return one row for each quantization and start."""
    model, num_weights = args.model, None
    if args.shape != "none":
        num_weights = write_model(folder / "model", SHAPES[args.shape], args.seed)
        model = str(folder / "model")
    rows = []
    for quant in args.quants:
        for attempt in range(args.repeats):
            caches = folder / f"caches-{quant}-{attempt}"
            for number in ("first", "second"):
                pieces = args.device != "cpu" and not args.no_idle
                found = start(model, quant, args.device, caches, pieces=pieces)
                packed = sum(path.stat().st_size for path in caches.rglob("*.packed"))
                if num_weights is not None and quant == "none":
                    packed = 2 * num_weights
                elif num_weights is not None and quant.startswith("b"):
                    packed = planes_bytes(SHAPES[args.shape], int(quant[1:]))
                rows.append({"quant": quant, "start": number, "packed_bytes": packed, **found})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)  # a run may be cut
            shutil.rmtree(caches, ignore_errors=True)
    return rows


def main() -> None:
    """Run, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--shape", choices=[*SHAPES, "none"], default="1.5B", help="none: the --model as it is"
    )
    parser.add_argument("--quants", nargs="+", default=None)
    parser.add_argument("--repeats", type=int, default=1, help="pairs of starts")
    parser.add_argument(
        "--no-idle", action="store_true", help="leave out what a GPU compiles in idle time"
    )
    parser.add_argument("--folder", type=Path, default=None, help="has room for the weights")
    args = parser.parse_args()
    if args.quants is None:
        planes = PLANES if args.device != "cpu" else ()
        args.quants = ["none"] if args.shape == "none" else [*QUANTS, *planes]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = measure(args, Path(folder))
    columns = ("quant", "start", "torch", "engine", "loaded", "first_token")
    header = [*columns, "anonymous MB", "device MB", "packed MB"]
    harness.table(
        ["quant, start", *header[2:]],
        [
            [f"{row['quant']}, {row['start']}", *(row[name] for name in columns[2:])]
            + [row[f"{name}_bytes"] / 1e6 for name in ("anonymous", "device", "packed")]
            for row in rows
        ],
    )
    for row in rows:
        if row.get("pieces"):
            pieces = ", ".join(f"{piece:.1f}" for piece in row["pieces"])
            print(f"{row['quant']}, {row['start']}: compiled in idle time in s: {pieces}")
    harness.finish(
        "models",
        args,
        {"shape": args.shape, "device": args.device, "rows": rows},
        checks(args, rows),
    )


def checks(args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold the rows against their targets: memory always, times for the embedded model on a GPU."""
    made = []
    for row in rows:
        what = args.model if args.shape == "none" else args.shape
        name = f"{what}, {row['quant']}, {row['start']} start"
        if row["packed_bytes"] > _MUCH:
            ratio = (row["anonymous_bytes"] + row["device_bytes"]) / row["packed_bytes"]
            where = "" if args.device == "cpu" else " on a GPU"
            memory = f"memory of loading{where}, {name}"
            made.append(harness.check(memory, ratio, "x packed", "<= 1.2"))
        if args.shape == "none" and args.device != "cpu":
            target = "<= 15" if row["start"] == "first" else "<= 5"
            made.append(harness.check(f"first token, {name}", row["first_token"], "s", target))
    return made


if __name__ == "__main__":
    main()
