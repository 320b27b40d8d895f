"""Files made to break a reader: each is one error with a remedy, soon and without much memory."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from keyturn.engine.files.catalog import resolve
from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.decoder import Decoder
from keyturn.engine.model.kv_cache import KVCache
from keyturn.engine.wire.errors import ModelLoadError

from . import crafted_gguf as crafted
from .written_gguf import LAYERS, VOCAB, write_gguf

MOST_BYTES = 256 << 20  # all files here are far below
MOST_SECONDS = 20
FAST = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextlib.contextmanager
def bounds():
    """Let what takes much address space or time fail with another error."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)

    def too_long(*_):
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(MOST_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def refusal(path):
    """Return the message of the error that a path is refused with, None if it is a model."""
    with bounds():
        try:
            model = load_model(path, torch.float32)
        except ModelLoadError as error:
            message = str(error)
            assert "\n" not in message and "; " in message and len(message) < 1000, message
            return message
        # What is believed must also work.
        decoder = Decoder(model.config, dict(model.tensors))
        cache = KVCache(model.config, 8, torch.float32, torch.device("cpu"))
        decoder.last_logits(cache, cache.append(np.zeros(3, np.int64), np.arange(3)), lambda: None)
        model.tokenizer.decode(model.tokenizer.encode("in (re").token_ids)
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    scaling = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
        "llama.rope.scaling.attn_factor": 1.5,
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "general.alignment": 32,
    }
    return GGUFFile(write_gguf(tmp_path_factory.mktemp("whole") / "m.gguf", metadata=scaling))


def with_metadata(**metadata):
    """A case that changes metadata; two underscores in a name stand for a dot."""
    changed = {key.replace("__", "."): value for key, value in metadata.items()}
    return lambda whole: crafted.rewritten(whole, metadata=changed)


def with_tensor(*about):
    return lambda whole: crafted.rewritten(whole, tensors={"blk.0.extra.weight": about})


def header(metadata=(), tensors=(), **more):
    return lambda whole: crafted.header(list(metadata), list(tensors), **more)


HUGE = 1 << 60
BYTE_WORDS = [f"<0x{number:02X}>" for number in range(256)] + ["<0x", "<0xZZ>", "<0x100>", ""]
CASES = {
    # llama.cpp #26690: an element type that is none, with nothing in the array, was used as index.
    "array of no known type": with_metadata(x=crafted.array(77, [], 0)),
    "array of arrays": with_metadata(x=crafted.array(9, [crafted.array(4, [])[4:]], 1)),
    "value of no known type": with_metadata(x=struct.pack("<I", 13)),
    # llama.cpp #18674: sizes whose product is small again modulo 2 ** 64.
    "dimensions that overflow": with_tensor((1 << 32, 1 << 32), 0, 0),
    "dimensions that overflow to a row": with_tensor((32, 1 << 62), 8, 0),
    "offset that overflows": with_tensor((32,), 0, (1 << 64) - 32),
    "size of nothing": with_tensor((0, 4), 0, 0),
    "too many dimensions": with_tensor((1, 1, 1, 1, 1), 0, 0),
    "four billion dimensions": header(tensors=[crafted.text("t") + struct.pack("<I", 0xFFFFFFFF)]),
    "half a block": with_tensor((33, 2), 8, 0),
    # llama.cpp #19003: a length that nothing bounds.
    "endless key": header(tensors=[crafted.text("k", HUGE)], counts=(0, 1)),
    "endless string": with_metadata(x=struct.pack("<I", 8) + crafted.text("v", HUGE)),
    "endless string in an array": with_metadata(x=crafted.array(8, [crafted.text("v", HUGE)])),
    "endless name": header(tensors=[crafted.text("t", (1 << 64) - 1)]),
    # llama.cpp #25821: as many layers as the header says, and those before the first.
    "too many layers": with_metadata(llama__block_count=LAYERS + 1),
    "endless layers": with_metadata(llama__block_count=(1 << 64) - 1),
    "negative layers": with_metadata(llama__block_count=-1),
    "no layers": with_metadata(llama__block_count=0),
    "layers as a text": with_metadata(llama__block_count="2"),
    # llama.cpp #25969: byte tokens that do not name a byte.
    "byte tokens that name no byte": with_metadata(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__tokens=[*BYTE_WORDS, *map(str, range(VOCAB - len(BYTE_WORDS)))],
        tokenizer__ggml__scores=np.zeros(VOCAB, np.float32),
        tokenizer__ggml__token_type=np.full(VOCAB, 6, np.int32),
    ),
    "pieces without an end": with_metadata(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__tokens=["x" * 300_000, *map(str, range(VOCAB - 1))],
        tokenizer__ggml__scores=np.zeros(VOCAB, np.float32),
        tokenizer__ggml__token_type=np.ones(VOCAB, np.int32),
    ),
    "token types that do not fit": with_metadata(tokenizer__ggml__token_type=np.ones(7, np.int32)),
    "merges of nothing": with_metadata(tokenizer__ggml__merges=[""]),
    # ollama #17042: memory for as much as the header announces.
    "endless array": with_metadata(x=crafted.array(0, [], HUGE)),
    "endless array of texts": with_metadata(x=crafted.array(8, [], HUGE)),
    "endless metadata": header(counts=(0, HUGE)),
    "endless tensors": header(counts=(HUGE, 0)),
    "alignment of zero": with_metadata(general__alignment=0),
    "alignment beyond the file": with_metadata(general__alignment=1 << 40),
    "key twice": lambda whole: crafted.header([("k", 1), ("k", 2)], []),
    "big-endian": header(version=0x03000000),
    "architecture of numbers": with_metadata(general__architecture=np.zeros(2, np.int32)),
    "rotary factor of none": with_metadata(llama__rope__scaling__factor=float("nan")),
    "rotary context as a text": with_metadata(llama__rope__scaling__original_context_length="x"),
    "rotary factors of another size": lambda whole: crafted.rewritten(
        whole,
        metadata={"llama.rope.scaling.type": None, "llama.rope.scaling.factor": None},
        tensors={"rope_freqs.weight": ((3,), 0, 0)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_crafted_gguf_is_one_error_with_a_remedy(whole, tmp_path, name):
    path = tmp_path / "m.gguf"
    path.write_bytes(CASES[name](whole))
    assert str(path) in refusal(path)


def test_the_file_that_the_cases_are_made_from_is_a_model(whole, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(crafted.rewritten(whole))
    assert refusal(path) is None


VALUES = st.one_of(
    st.sampled_from([0, 1, -1, 3, 1 << 31, (1 << 64) - 1, True, "", "none", "linear", [], ["a b"]]),
    st.floats(width=32),
    st.sampled_from([np.zeros(0, np.int32), np.full(VOCAB, 3, np.int32), np.ones(2, np.float32)]),
    st.binary(max_size=24),
)


@FAST
@given(data=st.data())
def test_any_value_of_any_key_loads_or_is_one_error(whole, tmp_path_factory, data):
    key = data.draw(st.sampled_from(sorted(whole.metadata)))
    path = tmp_path_factory.getbasetemp() / "value.gguf"
    path.write_bytes(crafted.rewritten(whole, metadata={key: data.draw(VALUES)}))
    refusal(path)


@FAST
@given(data=st.data())
def test_a_mutated_gguf_header_loads_or_is_one_error(whole, tmp_path_factory, data):
    content = bytearray(crafted.rewritten(whole))
    size = min(info.start for info in whole.tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, size - 1))
        put = data.draw(st.one_of(st.binary(max_size=9), st.sampled_from([b"\xff" * 8, bytes(8)])))
        content[at : at + data.draw(st.integers(0, 9))] = put
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    refusal(path)


# Safetensors


def safetensors(header, data=b"", size=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if size is None else size) + encoded + data


def place(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    copy = tmp_path_factory.mktemp("safetensors") / "model"
    shutil.copytree(tiny_model, copy)
    return copy


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        safetensors(b""),
        safetensors({}, size=HUGE),
        safetensors({}, size=(1 << 64) - 1),
        safetensors(b"{" * 5000),
        safetensors(b"[]"),
        safetensors({"t": place([1 << 40], 0, 1 << 42)}),
        safetensors({"t": place([1 << 32, 1 << 32], 0, 0)}),
        safetensors({"t": place([1 << 63, 4], 0, 8)}, bytes(8)),
        safetensors({"t": place([2], 0, 8), "u": place([2], 4, 12)}, bytes(12)),
        safetensors({"t": place([2], 8, 0)}, bytes(8)),
        safetensors({"t": place([2], -8, 0)}, bytes(8)),
        safetensors({"t": place([2], 0, 8, "X9")}, bytes(8)),
        safetensors({"t": place([2.5], 0, 8)}, bytes(8)),
        safetensors({"t": None}),
        safetensors({"t": place([2], 0, 8)}, bytes(8)),
    ],
)
def test_crafted_safetensors_are_one_error_with_a_remedy(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert str(folder) in refusal(folder)


@FAST
@given(data=st.data())
def test_a_mutated_safetensors_header_loads_or_is_one_error(tiny_model, folder, data):
    content = bytearray((tiny_model / "model.safetensors").read_bytes())
    size = 8 + struct.unpack_from("<Q", content)[0]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, size - 1))
        put = data.draw(st.one_of(st.binary(max_size=9), st.sampled_from([b"9", b"-", b'"', b"["])))
        content[at : at + data.draw(st.integers(0, 3))] = put
    (folder / "model.safetensors").write_bytes(content)
    refusal(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", ""])
def test_an_index_cannot_name_files_elsewhere(tiny_model, tmp_path, name):
    copy = tmp_path / "inner"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").rename(tmp_path / "model.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    assert "index.json names" in refusal(copy)


# What a folder says of itself, and what its files are


def changed(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def scaled(**scaling):
    return changed(rope_scaling=scaling)


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def instead(name, make):
    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


def tokenizer(part, value):
    def change(folder):
        raw = json.loads((folder / "tokenizer.json").read_text())
        (raw if part in raw else raw["model"])[part] = value
        (folder / "tokenizer.json").write_text(json.dumps(raw))

    return change


def endless(path):
    with path.open("wb") as file:
        file.truncate(3 << 30)  # of nothing, which takes no room


def in_parts(spoil):
    """Two files and their index, which `spoil` changes: the folder, its parts and the index."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names, index = sorted(tensors), {}
        parts = [{name: tensors[name] for name in names[at::2]} for at in range(2)]
        for number, part in enumerate(parts):
            index |= dict.fromkeys(part, f"{number}.safetensors")
        spoil(folder, parts, index)
        for number, part in enumerate(parts):
            save_file(part, folder / f"{number}.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    return change


def twice(folder, parts, index):
    name = next(iter(parts[0]))
    parts[1][name] = parts[0][name] + 1


def elsewhere(folder, parts, index):
    index[next(iter(parts[0]))] = "1.safetensors"


def lost(folder, parts, index):
    index |= dict.fromkeys(index, "0.safetensors")


MELLUM = {"model_type": "mellum", "moe_intermediate_size": 8}
SLIDES = {"model_type": "mistral", "sliding_window": 4}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
FOLDERS = {
    "a tensor in two files": (in_parts(twice), "is in 1.safetensors, and in 0.safetensors"),
    "an index that is wrong": (in_parts(elsewhere), "is in 0.safetensors, and in 1.safetensors"),
    "an index that leaves a file out": (in_parts(lost), "lacks the tensor|said to be"),
    "a folder for weights": (instead("model.safetensors", Path.mkdir), "has no model.safetensors"),
    "a loop for weights": (
        instead("model.safetensors", lambda path: path.symlink_to(path.name)),
        "has no model.safetensors",
    ),
    "a folder for a config": (instead("config.json", Path.mkdir), "config.json.*directory"),
    "a folder for a tokenizer": (instead("tokenizer.json", Path.mkdir), "has no tokenizer.json"),
    "no tokenizer": (instead("tokenizer.json", lambda path: None), "has no tokenizer.json"),
    "an endless tokenizer": (instead("tokenizer.json", endless), "more than 100 MB"),
    "an endless config": (instead("config.json", endless), "config.json cannot be read"),
    "a tokenizer of nothing": (written("tokenizer.json", b""), "tokenizer.json is malformed"),
    "a tokenizer without tokens": (tokenizer("vocab", {}), "vocabulary|no tokens"),
    "a tokenizer of another model": (tokenizer("vocab", {"a": -1}), "tokenizer.json is malformed"),
    "a pattern that is none": (
        tokenizer("pre_tokenizer", SPLIT | {"pattern": {"Regex": "("}}),
        "tokenizer.json is malformed",
    ),
    "a tokenizer_config of bytes": (written("tokenizer_config.json", b"\xff"), "cannot be read"),
    "a deep config": (written("config.json", b"[" * 100_000), "cannot be read"),
    "a config with a long number": (
        written("config.json", b'{"num_hidden_layers": ' + b"9" * 5000 + b"}"),
        "cannot be read",
    ),
    "negative heads": (changed(num_attention_heads=-4), "num_heads is -4"),
    "a thousand million layers": (changed(num_hidden_layers=10**9), "1000000000 layers"),
    "a thousand million experts": (changed(**MELLUM, num_experts=10**9), "too few for 2 layers"),
    "a base of zero": (changed(rope_theta=0), "rope_theta is 0.0"),
    "a base that is no number": (changed(rope_theta="nan"), "rope_theta is nan"),
    "an epsilon that is no number": (changed(rms_norm_eps=float("nan")), "norm_eps is nan"),
    "endless positions": (changed(max_position_embeddings=10**30), "max_positions is 1000"),
    "a rotary kind that nobody knows": (scaled(type="cubist", factor=2.0), "'cubist' is not"),
    "a rotary kind that is a list": (scaled(type=["x"], factor=2.0), "malformed"),
    "a rotary kind without its figures": (scaled(type="yarn"), "lacks the parameter"),
    "rotary figures that divide by zero": (
        scaled(
            type="llama3",
            factor=2.0,
            low_freq_factor=float("nan"),
            high_freq_factor=1.0,
            original_max_position_embeddings=64,
        ),
        "no finite frequencies",
    ),
    "a kind of layer that nobody knows": (changed(layer_types=["chunked"] * 2), "'chunked'"),
    "kinds of too many layers": (
        changed(**SLIDES, layer_types=["full_attention"] * 10**5),
        "for 2 layers",
    ),
    "a period without an end": (
        changed(model_type="smollm3", no_rope_layer_interval=10**9),
        "a period of 1000000000",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_as_it_should_be_is_one_error(tiny_model, tmp_path, name):
    change, reason = FOLDERS[name]
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    change(copy)
    found = refusal(copy)
    assert found is not None and str(copy) in found and re.search(reason, found), found


def test_what_a_tokenizer_does_later_is_one_error_too(tiny_model, tmp_path):
    for number, (part, value) in enumerate(
        [
            ("vocab", {"a": 1 << 31}),
            ("pre_tokenizer", SPLIT | {"pattern": {"Regex": "(a+)+$"}}),
        ]
    ):
        copy = tmp_path / str(number)
        shutil.copytree(tiny_model, copy)
        tokenizer("merges", [])(copy)
        tokenizer(part, value)(copy)
        with bounds():
            model = load_model(copy, torch.float32)
            with pytest.raises(ModelLoadError, match=r"the model's? .*; |tokenizer .*; "):
                model.tokenizer.encode("a" * 40 + "b")


def test_part_of_a_gguf_names_what_joins_them(whole, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(with_metadata(split__count=3)(whole))
    assert "one of 3 parts; join them" in refusal(path)


def test_what_may_not_be_read_is_one_error(monkeypatch, tiny_model):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", closed)  # as root nothing is closed
    with pytest.raises(ModelLoadError, match="cannot be read.*Permission denied.*; "):
        resolve(str(tiny_model))


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_file_that_changes_after_loading_changes_nothing(kind, whole, tiny_model, tmp_path):
    if kind == "gguf":
        path = weights = tmp_path / "m.gguf"
        path.write_bytes(crafted.rewritten(whole))
    else:
        path, weights = tmp_path / "model", tmp_path / "model" / "model.safetensors"
        shutil.copytree(tiny_model, path)
    expected = load_model(path, torch.float32).tensors
    found = load_model(path, torch.float32).tensors
    os.truncate(weights, 10)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


# Pickles, and code that comes with a model


def test_pickled_weights_are_refused_and_not_opened(tiny_model, tmp_path):
    copy, mark = tmp_path / "model", tmp_path / "opened"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (Path.touch, (mark,))

    torch.save({"t": Trap()}, copy / "pytorch_model.bin")
    for given_as in (copy, copy / "pytorch_model.bin"):
        with pytest.raises(ModelLoadError, match="pickle.*; use the model's safetensors"):
            resolve(str(given_as))
    with pytest.raises(ModelLoadError):
        load_model(copy, torch.float32)
    with pytest.raises(ModelLoadError):
        load_model(copy / "pytorch_model.bin", torch.float32)
    assert not mark.exists()


def test_code_in_a_models_folder_is_never_run(tiny_model, tmp_path):
    copy, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_model, copy)
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config["trust_remote_code"] = True
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(f"open({str(mark)!r}, 'w')")
    assert refusal(copy) is None and not mark.exists()
