"""GGUF files: the embedded model, variants of one that is written here, and ways to be damaged."""

import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from keyturn.engine.files import weights
from keyturn.engine.files.stored import in_gguf
from keyturn.engine.files.weights import load_model
from keyturn.engine.model.tensors import expected_shapes
from keyturn.engine.wire.errors import ModelLoadError
from keyturn.kernels.weights.blocks import BlockMatrix

from .written_gguf import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    header_size,
    matrices,
    words,
    write_gguf,
)

EMBEDDED = Path(weights.__file__).parents[1] / "embedded" / "keyturn-135m-q4_1.gguf"


def dense(weight, dtype):
    return weight.values(dtype) if isinstance(weight, BlockMatrix) else weight


@pytest.fixture(scope="module")
def embedded():
    return load_model(EMBEDDED, torch.bfloat16)


def test_embedded_model_is_complete(embedded):
    config = embedded.config
    assert (config.num_layers, config.hidden_size, config.num_kv_heads) == (30, 576, 3)
    assert config.tied_embeddings and config.rope_theta == 100000.0
    assert embedded.tensors.keys() == expected_shapes(config).keys()
    in_blocks = [part for part in embedded.tensors.values() if isinstance(part, BlockMatrix)]
    assert len(in_blocks) == 7 * config.num_layers + 1
    assert {part.kind for part in in_blocks} == {"Q4_1"}
    vectors = [part for part in embedded.tensors.values() if isinstance(part, torch.Tensor)]
    assert {part.dtype for part in vectors} == {torch.bfloat16}
    assert embedded.fim.layouts == ("spm", "psm") and embedded.fim.layout == "spm"
    assert embedded.fim.end_ids == set(range(17))  # what its vocabulary begins with
    assert embedded.tokenizer.vocab_size == 49152 == len(embedded.tokenizer.token_bytes())
    assert embedded.tokenizer.bos_id is None and embedded.tokenizer.eos_id == 0
    assert embedded.tokenizer.re_encodes_locally("é")


def test_embedded_files_are_those_that_were_measured():
    assert EMBEDDED.stat().st_size < 95_000_000
    lines = (EMBEDDED.parent / "SHA256SUMS").read_text().splitlines()
    digests = {name: digest for digest, name in map(str.split, lines)}
    assert [*digests] == [EMBEDDED.name, "depth.npz"]
    for name, digest in digests.items():
        assert hashlib.sha256((EMBEDDED.parent / name).read_bytes()).hexdigest() == digest
    assert digests[EMBEDDED.name] in (EMBEDDED.parent / "MODEL_CARD.md").read_text()


def test_embedded_tokenizer_file_is_the_metadata_one(embedded, tmp_path):
    (tmp_path / "alone.gguf").symlink_to(EMBEDDED)
    from keyturn.engine.files.gguf_file import GGUFFile
    from keyturn.engine.files.gguf_vocabulary import build_tokenizer

    file = GGUFFile(tmp_path / "alone.gguf")
    built = build_tokenizer(file)
    built.encode_special_tokens = True
    shipped = embedded.tokenizer.raw
    assert shipped.get_vocab_size() == built.get_vocab_size() == 49152
    assert shipped.get_vocab() == built.get_vocab()
    text = Path(__file__).read_text() + "é🎉 '\u2028\f 12345 \t\r\n they'll"
    assert built.encode(text).ids == shipped.encode(text).ids


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gguf_formats_load_as_the_library_dequantises(tmp_path, kind, dtype):
    tensors = matrices()
    model = load_model(write_gguf(tmp_path / "m.gguf", kind, tensors=tensors), dtype)
    wanted = GGMLQuantizationType[kind]
    for name, stored in (
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
    ):
        rounded = quants.dequantize(quants.quantize(tensors[stored], wanted), wanted)
        found = dense(model.tensors[name], dtype)
        assert torch.equal(found, torch.from_numpy(rounded.copy()).to(dtype)), name
    assert torch.equal(
        model.tensors["model.norm.weight"],
        torch.from_numpy(tensors["output_norm.weight"]).to(dtype),
    )


def interleaved(rows, heads):
    """Reorder query or key rows as llama.cpp's converter does."""
    half = len(rows) // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_query_and_key_rows_come_back_in_halves(tmp_path, kind):
    tensors = matrices()
    plain = {name: tensors[name].copy() for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight")}
    tensors["blk.0.attn_q.weight"] = interleaved(plain["blk.0.attn_q.weight"], HEADS)
    tensors["blk.0.attn_k.weight"] = interleaved(plain["blk.0.attn_k.weight"], KV_HEADS)
    model = load_model(write_gguf(tmp_path / "m.gguf", kind, tensors=tensors), torch.float32)
    for part in "qk":
        wanted = GGMLQuantizationType[kind]
        rounded = quants.dequantize(
            quants.quantize(plain[f"blk.0.attn_{part}.weight"], wanted), wanted
        )
        stored = model.tensors[f"model.layers.0.self_attn.{part}_proj.weight"]
        found = dense(stored, torch.float32)
        assert torch.equal(found, torch.from_numpy(rounded.copy())), part


def test_qwen2_rows_stay_and_biases_are_read(tmp_path):
    tensors = matrices(bias=True)
    path = write_gguf(tmp_path / "m.gguf", arch="qwen2", tensors=tensors, pre="qwen2")
    model = load_model(path, torch.float32)
    assert model.config.attention_bias and not model.config.output_bias
    for part in ("weight", "bias"):
        found = model.tensors[f"model.layers.1.self_attn.q_proj.{part}"]
        assert torch.equal(found, torch.from_numpy(tensors[f"blk.1.attn_q.{part}"]))


def test_llama_biases_are_reordered_with_their_rows(tmp_path):
    tensors = matrices(bias=True)
    bias = tensors["blk.0.attn_q.bias"].copy()
    tensors["blk.0.attn_q.bias"] = interleaved(bias, HEADS)
    model = load_model(write_gguf(tmp_path / "m.gguf", tensors=tensors), torch.float32)
    found = model.tensors["model.layers.0.self_attn.q_proj.bias"]
    assert torch.equal(found, torch.from_numpy(bias))
    assert in_gguf(model.config, "model.layers.0.self_attn.v_proj.weight").order is None


def test_untied_head_is_read(tmp_path):
    tensors = matrices()
    tensors["output.weight"] = tensors["token_embd.weight"] * 2
    model = load_model(write_gguf(tmp_path / "m.gguf", tensors=tensors), torch.float32)
    assert not model.config.tied_embeddings
    assert torch.equal(model.tensors["lm_head.weight"], torch.from_numpy(tensors["output.weight"]))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"llama.rope.scaling.type": "none"}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"llama.rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 8.0,
                "llama.rope.scaling.original_context_length": 64,
            },
            {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 8.0,
                "llama.rope.scaling.yarn_attn_factor": 1.25,  # as Mellum2's own config has it
            },
            {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25},
        ),
    ],
)
def test_rotary_scaling_is_spelled_as_hugging_face_does(tmp_path, metadata, expected):
    model = load_model(write_gguf(tmp_path / "m.gguf", metadata=metadata), torch.float32)
    assert model.config.rope_scaling == expected
    assert model.config.rope_theta == 5000.0


def test_rope_freqs_tensor_becomes_factors(tmp_path):
    tensors = matrices()
    factors = np.linspace(1, 8, HIDDEN // HEADS // 2).astype(np.float32)
    tensors["rope_freqs.weight"] = factors
    model = load_model(write_gguf(tmp_path / "m.gguf", tensors=tensors), torch.float32)
    assert model.config.rope_scaling == {"rope_type": "gguf_factors", "factors": factors.tolist()}


def test_fim_ids_of_the_metadata_make_a_template(tmp_path):
    ids = {f"tokenizer.ggml.fim_{k}_token_id": n for n, k in enumerate(("pre", "suf", "mid"), 260)}
    model = load_model(write_gguf(tmp_path / "m.gguf", metadata=ids), torch.float32)
    fim = model.fim
    assert (fim.prefix_id, fim.suffix_id, fim.middle_id) == (260, 261, 262)
    assert fim.layouts == ("psm",) and 0 in fim.end_ids
    assert load_model(write_gguf(tmp_path / "n.gguf"), torch.float32).fim is None


def test_progress_reaches_hundred(tmp_path):
    seen = []
    load_model(
        write_gguf(tmp_path / "m.gguf"), torch.float32, lambda what, percent: seen.append(percent)
    )
    assert seen[0] == 0 and seen[-1] == 100 and seen == sorted(seen)


def test_foreign_tokenizer_json_beside_is_left_alone(tmp_path, tiny_model):
    path = write_gguf(tmp_path / "m.gguf")
    shutil.copy(tiny_model / "tokenizer.json", tmp_path)
    model = load_model(path, torch.float32)
    assert model.tokenizer.encode("in").token_ids.tolist() == [words().index("in")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "gptneox"}, "architecture 'gptneox'"),
        ({"arch": "two\nlines"}, "two.*lines"),
        ({"merges": ["in"]}, "vocabulary"),
        ({"merges": ["i never-heard"]}, "vocabulary"),
        ({"metadata": {"llama.expert_count": 8}}, "experts"),
        ({"drop": ("attention.layer_norm_rms_epsilon",)}, "layer_norm_rms_epsilon"),
        ({"metadata": {"llama.use_parallel_residual": True}}, "blk.0.ffn_norm.weight.*no layer"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "longrope"),
        ({"pre": "unheard-of"}, "unheard-of.*tokenizer.json"),
        ({"drop": ("blk.1.ffn_up.weight",)}, "blk.1.ffn_up.weight"),
        ({"drop": ("embedding_length",)}, "llama.embedding_length"),
        ({"metadata": {"llama.attention.key_length": 8}}, "partial rotation|shape|rotated"),
    ],
)
def test_unsupported_gguf_is_one_line_with_the_file(tmp_path, change, reason):
    path = write_gguf(tmp_path / "m.gguf", **change)
    with pytest.raises(ModelLoadError, match=reason) as error:
        load_model(path, torch.float32)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [("attn_norm.bias", "biases of norms"), ("attn_q_norm.weight", "normed queries")],
)
def test_tensors_that_no_layer_of_ours_has_are_not_left_out(tmp_path, extra, reason):
    tensors = matrices() | {f"blk.0.{extra}": np.ones(HIDDEN, dtype=np.float32)}
    with pytest.raises(ModelLoadError, match=reason):
        load_model(write_gguf(tmp_path / "m.gguf", tensors=tensors), torch.float32)


def test_wrong_shape_names_the_tensor(tmp_path):
    tensors = matrices()
    tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"][:-1]
    with pytest.raises(ModelLoadError, match="blk.0.ffn_up.weight.*shape"):
        load_model(write_gguf(tmp_path / "m.gguf", tensors=tensors), torch.float32)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GG", b"PK\x03\x04" + b"\0" * 60, b"GGUF\x03\0\0\0" + b"\xff" * 40]
)
def test_no_gguf_file_is_one_line(tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="m.gguf") as error:
        load_model(path, torch.float32)
    assert "\n" not in str(error.value)


def test_missing_file_is_a_load_error(tmp_path):
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_model(tmp_path / "none.gguf", torch.float32)


def test_truncation_anywhere_is_a_load_error(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf")
    content, header = whole.read_bytes(), header_size(whole)
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, header, header // 150), header, len(content) // 2, len(content) - 33]:
        cut.write_bytes(content[:size])
        with pytest.raises(ModelLoadError):
            load_model(cut, torch.float32)


def test_flipped_header_bytes_load_or_are_a_load_error(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", metadata={"llama.rope.scaling.type": "none"})
    content, header = whole.read_bytes(), header_size(whole)
    random = np.random.default_rng(5)
    broken, num_refused = tmp_path / "flipped.gguf", 0
    places = [*range(24), *random.integers(24, header, 250)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        broken.write_bytes(damaged)
        try:
            load_model(broken, torch.float32)
        except ModelLoadError as error:
            num_refused += 1
            assert "\n" not in str(error)
    assert num_refused > 20


def test_huge_lengths_are_refused_before_memory_is_taken(tmp_path):
    huge = struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1 << 60)
    path = tmp_path / "m.gguf"
    path.write_bytes(huge + b"\0" * 100)
    with pytest.raises(ModelLoadError, match="length"):
        load_model(path, torch.float32)


def test_loading_imports_no_transformers():
    import subprocess
    import sys

    code = (
        "import sys, torch; from pathlib import Path;"
        "from keyturn.engine.files.weights import load_model;"
        f"load_model(Path({str(EMBEDDED)!r}), torch.bfloat16);"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_start_token_of_a_gguf_only_where_it_is_added(tmp_path):
    ids = {"tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 4}
    silent = load_model(write_gguf(tmp_path / "a.gguf", metadata=ids), torch.float32).tokenizer
    assert silent.bos_id is None and silent.end_ids == {0, 4}
    ids["tokenizer.ggml.add_bos_token"] = True
    assert (
        load_model(write_gguf(tmp_path / "b.gguf", metadata=ids), torch.float32).tokenizer.bos_id
        == 3
    )


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "gpt-2", "deepseek-coder", "starcoder"])
def test_known_pre_tokenizers_are_built_and_local(tmp_path, name):
    tokenizer = load_model(write_gguf(tmp_path / "m.gguf", pre=name), torch.float32).tokenizer
    text = "in (re 12é"
    assert tokenizer.decode(tokenizer.encode(text).token_ids) == text
    assert tokenizer.re_encodes_locally("in (re")


def test_a_chat_model_without_marks_is_refused_in_gguf(tmp_path):
    template = {"tokenizer.chat_template": "{{ x }}"}
    path = write_gguf(tmp_path / "m.gguf", metadata=template)
    with pytest.raises(ModelLoadError, match="answer in a chat"):
        load_model(path, torch.float32)
    ids = {f"tokenizer.ggml.fim_{k}_token_id": n for n, k in enumerate(("pre", "suf", "mid"), 260)}
    path = write_gguf(tmp_path / "n.gguf", metadata=template | ids)
    assert load_model(path, torch.float32).fim is not None
