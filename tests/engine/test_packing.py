"""`quant` q4 and q8: what is computed with, what is kept in the cache, and what memory it takes."""

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from keyturn.engine.engine import Engine
from keyturn.engine.files import packed_cache
from keyturn.engine.files.packed_cache import PackedCache, user_cache
from keyturn.engine.files.packing import Packing
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.wire.config import CompletionParams, EngineConfig
from keyturn.engine.wire.errors import ModelLoadError
from keyturn.kernels import dispatch
from keyturn.kernels.weights.blocks import BlockMatrix

from .written_gguf import write_gguf

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path):
    return PackedCache(tmp_path / "packed", 1 << 30)


def load(path, quant, cache, dtype=torch.float32, *, streams=False):
    return load_model(path, dtype, packing=Packing(quant, cache), streams=streams)


def logits(files, rows=6):
    decoder = Decoder(files.config, dict(files.tensors))
    cache = KVCache(files.config, 32, decoder.dtype, CPU)
    slots = cache.append(np.arange(rows) * 7 % 300, np.arange(rows))
    return decoder.logits(decoder.forward(cache, slots, lambda: None))


def kept(cache):
    return sorted(cache.folder.glob("*")) if cache.folder.exists() else []


def is_mapped(matrix):
    address = (matrix.blocks if isinstance(matrix, BlockMatrix) else matrix).data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.split()[-1].endswith(".packed")
    return False


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("quant", ["q4", "q8"])
def test_a_packed_model_computes_with_the_rounded_weights(
    monkeypatch, tiny_model, cache, quant, backend
):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    packed = load(tiny_model, quant, cache)
    kinds = {n: p.kind for n, p in packed.tensors.items() if isinstance(p, BlockMatrix)}
    of_layers = {kind for name, kind in kinds.items() if ".layers." in name}
    assert of_layers == {"Q4_1" if quant == "q4" else "Q8_0"}
    assert kinds["model.embed_tokens.weight"] == "Q8_0" and len(kinds) == 15
    dense = {
        name: part.values(torch.float32) if isinstance(part, BlockMatrix) else part
        for name, part in packed.tensors.items()
    }
    for rows in (6, 20):  # in one call, and one by one
        expected = logits(dataclasses.replace(packed, tensors=dense), rows)
        assert torch.allclose(logits(packed, rows), expected, rtol=1e-4, atol=1e-3)


def test_the_second_start_maps_what_the_first_has_packed(tiny_model, cache):
    first, (path,) = load(tiny_model, "q4", cache), kept(cache)
    written = path.stat().st_ino
    second = load(tiny_model, "q4", cache)
    assert kept(cache) == [path] and path.stat().st_ino == written
    assert path.stat().st_mode & 0o077 == 0 and cache.folder.stat().st_mode & 0o077 == 0
    for name, part in second.tensors.items():
        assert is_mapped(part), name
    assert torch.equal(logits(first), logits(second))
    path.unlink()  # what is in use stays
    assert torch.equal(logits(first), logits(second))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_without_a_cache_or_with_one_the_result_is_the_same(
    monkeypatch, tiny_model, cache, backend
):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    expected = logits(load(tiny_model, "q8", None))
    monkeypatch.setattr(packed_cache, "PIECE_BYTES", 1000)
    assert torch.equal(logits(load(tiny_model, "q8", None, streams=True)), expected)
    assert torch.equal(logits(load(tiny_model, "q8", cache, streams=True)), expected)
    assert torch.equal(logits(load(tiny_model, "q8", cache, streams=True)), expected)
    assert torch.equal(logits(load(tiny_model, "q8", cache)), expected)


def test_another_quant_dtype_or_file_is_packed_by_itself(tiny_model, tmp_path, cache):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    load(folder, "q4", cache)
    load(folder, "q8", cache)
    load(folder, "q8", cache, torch.bfloat16)
    assert len(kept(cache)) == 3
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 2
    save_file(tensors, folder / "model.safetensors")
    changed = load(folder, "q4", cache)
    assert len(kept(cache)) == 4
    assert not torch.equal(logits(changed), logits(load(tiny_model, "q4", cache)))


@pytest.mark.parametrize("damage", ["flipped", "cut", "grown", "empty", "older version"])
def test_a_damaged_file_is_packed_anew(tiny_model, cache, caplog, damage):
    expected = logits(load(tiny_model, "q4", cache))
    (path,) = kept(cache)
    whole = path.read_bytes()
    content = bytearray(whole)
    if damage == "flipped":
        content[len(content) // 2] ^= 4
    elif damage == "older version":
        content[8] ^= 0x40
    else:
        content = {"cut": content[:-9], "grown": content + b"x", "empty": b""}[damage]
    path.write_bytes(content)
    assert torch.equal(logits(load(tiny_model, "q4", cache)), expected)
    assert "packed anew" in caplog.text and path.read_bytes() == whole


def test_what_was_used_longest_ago_makes_room(tiny_model, cache):
    load(tiny_model, "q4", cache)
    (q4,) = kept(cache)
    load(tiny_model, "q8", cache)
    (q8,) = set(kept(cache)) - {q4}
    os.utime(q8, (1, 1))
    os.utime(q4, (2, 2))
    left_over = cache.folder / "x.part"
    left_over.touch()
    os.utime(left_over, (1, 1))
    load(tiny_model, "q8", cache)  # used now
    bounded = PackedCache(cache.folder, q8.stat().st_size + q4.stat().st_size)
    load(tiny_model, "q4", bounded, torch.bfloat16)
    assert q8 in kept(cache) and q4 not in kept(cache) and left_over not in kept(cache)
    assert sum(path.stat().st_size for path in kept(cache)) <= bounded.max_bytes


def test_what_cannot_be_kept_is_used_all_the_same(tiny_model, tmp_path, caplog):
    expected = logits(load(tiny_model, "q8", None))
    (tmp_path / "file").touch()
    in_a_file = PackedCache(tmp_path / "file" / "packed", 1 << 30)
    too_small = PackedCache(tmp_path / "packed", 20_000)
    for cache in (in_a_file, too_small):
        caplog.clear()
        assert torch.equal(logits(load(tiny_model, "q8", cache)), expected)
        assert "not kept" in caplog.text
    assert kept(too_small) == []


def test_a_full_disk_keeps_nothing_and_takes_nothing(tiny_model, cache, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = logits(load(tiny_model, "q8", None))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        found = load(tiny_model, "q8", cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "are not kept" in caplog.text and kept(cache) == []
    assert torch.equal(logits(found), expected)


def test_two_that_pack_at_once_both_have_it_and_one_file_stays(tiny_model, cache):
    packed = load(tiny_model, "q8", None)
    shapes = {name: tuple(each.shape) for name, each in packed.tensors.items()}
    expected = logits(packed)

    def slowly():
        for number, each in enumerate(packed.tensors.items()):
            if number == len(shapes) // 2:  # the other begins and ends meanwhile
                assert cache.keep("key", iter(packed.tensors.items()))
                assert cache.load("key", shapes) is not None
            yield each

    assert cache.keep("key", slowly())
    found = cache.load("key", shapes)
    assert torch.equal(logits(dataclasses.replace(packed, tensors=found)), expected)
    assert [path.suffix for path in kept(cache)] == [".packed"]


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_gguf_of_halves_is_rounded_and_blocks_stay(tmp_path, cache, kind):
    files = load(write_gguf(tmp_path / "m.gguf", kind), "q4", cache)
    assert files.tensors["model.layers.1.mlp.down_proj.weight"].kind == "Q4_1"
    files = load(write_gguf(tmp_path / "n.gguf", "Q8_0"), "q4", cache)
    assert files.tensors["model.layers.1.mlp.down_proj.weight"].kind == "Q8_0"


def test_values_beyond_fp16_are_one_error(tiny_model, tmp_path, cache):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match="layers.1.mlp.up_proj.*leave quant out"):
        load(folder, "q4", cache)
    assert kept(cache) == []


def test_an_engine_completes_from_the_users_cache(monkeypatch, tiny_model, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = set()
    for _ in range(2):
        engine = Engine(EngineConfig("cpu", "auto", 1, 1 << 28, 0, 256, "q4"))
        session = engine.open("d", "def add(", path="a.py", model=str(tiny_model), policy="turn")
        texts.add(session.complete(8, CompletionParams(6, 0.0, 1.0, 0, (), 0.0), int).text)
    assert len(texts) == 1 and len(kept(user_cache())) == 1
    assert user_cache().folder == tmp_path / "keyturn" / "packed"
    monkeypatch.setenv("KEYTURN_PACKED_BYTES", "0")
    assert user_cache().max_bytes == 0


# Memory

HIDDEN, INNER, LAYERS = 768, 2048, 12
DEEP = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
DEEP |= {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64}
LOAD = """
import os, sys, threading
import torch
from keyturn.engine.engine import Engine
from keyturn.engine.wire.config import EngineConfig

def anonymous():
    size, resident, shared, *_ = map(int, open("/proc/self/statm").read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")

torch.zeros(100).exp()
quant = None if sys.argv[2] == "none" else sys.argv[2]
engine = Engine(EngineConfig("cpu", "bfloat16", 1, 1 << 28, 64, 256, quant))
engine.load(sys.argv[3])  # what a first load takes whatever the model
before, most, is_over = anonymous(), 0, threading.Event()

def watch():
    global most
    while not is_over.wait(0.001):
        most = max(most, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
model = engine.load(sys.argv[1])
is_over.set()
watcher.join()
print(max(most, anonymous()) - before)
"""


@pytest.fixture(scope="module")
def deep_model(tiny_model, tmp_path_factory):
    """74 million parameters in bfloat16, in two files."""
    folder = tmp_path_factory.mktemp("deep")
    config = json.loads((tiny_model / "config.json").read_text()) | DEEP
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(tiny_model / "tokenizer.json", folder)
    hidden, inner, keys = HIDDEN, INNER, 4 * 64
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm": (hidden,), at + "post_attention_layernorm": (hidden,)}
        rows = {"q": hidden, "k": keys, "v": keys, "o": hidden}
        shapes |= {f"{at}self_attn.{part}_proj": (rows[part], hidden) for part in rows}
        shapes |= {f"{at}mlp.{part}_proj": (inner, hidden) for part in ("gate", "up")}
        shapes[f"{at}mlp.down_proj"] = (hidden, inner)
    names = sorted(shapes)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"part-{number}.safetensors"
        save_file(
            {f"{n}.weight": torch.randn(shapes[n]).mul_(0.02).bfloat16() for n in part},
            folder / file,
        )
        weight_map |= {f"{name}.weight": file for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder, sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("quant", "bits", "bound", "starts"),
    [("q4", 5, 0, 1), ("none", 16, 0, 1), ("q4", 5, 1 << 30, 2)],
)
def test_loading_takes_little_more_memory_than_the_packed_weights(
    tiny_model, deep_model, tmp_path, quant, bits, bound, starts
):
    folder, num_weights = deep_model
    packed_bytes = num_weights * bits // 8
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment["KEYTURN_PACKED_BYTES"] = str(bound)
    for _ in range(starts):
        command = [sys.executable, "-c", LOAD, str(folder), quant, str(tiny_model)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) <= 1.2 * packed_bytes
