"""A small GGUF file with random weights, written as a test says."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCAB = 64, 96, 4, 2, 2, 300
MERGES = ("i n", "Ġ (", "r e")


def words():
    singles = sorted(ByteLevel.alphabet())
    return ["<|endoftext|>", *singles, "in", "Ġ(", "re", *(f"<u{i}>" for i in range(VOCAB - 260))]


def matrices(bias=False):
    random = np.random.default_rng(3)
    head = HIDDEN // HEADS
    shapes = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (KV_HEADS * head, HIDDEN),
        "attn_v": (KV_HEADS * head, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
    }
    tensors = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        tensors |= {at + "attn_norm.weight": (HIDDEN,), at + "ffn_norm.weight": (HIDDEN,)}
        tensors |= {f"{at}{name}.weight": shape for name, shape in shapes.items()}
        if bias:
            for name in ("attn_q", "attn_k", "attn_v"):
                tensors[f"{at}{name}.bias"] = shapes[name][:1]
    return {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()
    }


def write_gguf(
    path,
    kind="F32",
    arch="llama",
    metadata=None,
    tensors=None,
    drop=(),
    pre="smollm",
    merges=MERGES,
):
    writer = GGUFWriter(path, arch)
    sizes = {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "rope.dimension_count": HIDDEN // HEADS,
    }
    for key, value in sizes.items():
        if key not in drop:
            writer.add_uint32(f"{arch}.{key}", value)
    if "attention.layer_norm_rms_epsilon" not in drop:
        writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{arch}.rope.freq_base", 5000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocabulary = words()
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges(merges)
    for key, value in (metadata or {}).items():
        kind_of = {str: "STRING", bool: "BOOL", int: "UINT32", float: "FLOAT32"}[type(value)]
        writer.add_key_value(key, value, GGUFValueType[kind_of])
    tensors = matrices() if tensors is None else tensors
    for name, values in tensors.items():
        if name in drop:
            continue
        wanted = GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        if wanted.name in ("F32", "F16"):
            writer.add_tensor(name, values.astype(np.dtype(wanted.name.replace("F", "float"))))
        else:
            writer.add_tensor(name, quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def header_size(path):
    from keyturn.engine.files.gguf_file import GGUFFile

    return min(info.start for info in GGUFFile(path).tensors.values())
