"""Cut a published tokenizer down to what a few texts need; ids stay what they are.

    python -m tests.engine.cut_vocabulary TOKENIZER OUT

TOKENIZER is a `tokenizer.json`, or a SentencePiece model (then `sentencepiece` has to be there).
What is left encodes the place of `fim_prompts.json` as the whole does, and any other text somehow:
every byte, every special token and every merge within those texts is kept.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.gguf_vocabulary import build_tokenizer

# Tokens that stand for nothing, by the hundred.
_SPARE = re.compile(r"holder.no|unused\d|control_\d|PAD\d")
GOLDEN = json.loads(Path(__file__).with_name("fim_prompts.json").read_text(encoding="utf-8"))


def whole(path: Path, work: Path) -> Tokenizer:
    """Return the tokenizer; of SentencePiece's as we read it from a GGUF file."""
    if path.suffix == ".json":
        return Tokenizer.from_file(str(path))
    from sentencepiece import SentencePieceProcessor  # pyright: ignore[reportMissingImports]

    model = SentencePieceProcessor(model_file=str(path))
    count = range(model.get_piece_size())
    kinds = (model.is_unknown, model.is_control, model.is_byte)
    types = [
        next((n for n, is_it in zip((2, 3, 6), kinds, strict=True) if is_it(at)), 1) for at in count
    ]
    writer = GGUFWriter(work, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(at) for at in count])
    writer.add_token_scores([model.get_score(at) for at in count])
    writer.add_token_types(np.array(types, np.int32).tolist())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return build_tokenizer(GGUFFile(work))


def cut(tokenizer: Tokenizer, texts: list[str]) -> str:
    """Return the `tokenizer.json` of what is left."""
    raw = json.loads(tokenizer.to_str())
    pieces = set()
    for text in texts:
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        words = [(text, None)]
        if tokenizer.pre_tokenizer is not None:
            words = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        for word, _ in words:
            pieces |= {word[at:end] for at in range(len(word)) for end in range(at + 1, at + 17)}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    raw["added_tokens"] = [
        token for token in raw["added_tokens"] if not _SPARE.search(token["content"])
    ]
    special = {token["content"] for token in raw["added_tokens"]}
    # Gemma's tab is a word, where others have the piece <0x09>.
    alphabet = {*ByteLevel.alphabet(), "\t", *map(chr, range(33, 127)), "▁"}
    alphabet.add(raw["model"]["unk_token"])
    bytes_of_pieces = {f"<0x{byte:02X}>" for byte in range(256)}
    kept = vocabulary.keys() & (pieces | special | alphabet | bytes_of_pieces)
    raw["model"]["vocab"] = {word: vocabulary[word] for word in sorted(kept, key=vocabulary.get)}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in raw["model"]["merges"]]
    raw["model"]["merges"] = [pair for pair in merges if {*pair, "".join(pair)} <= pieces]
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":")) + "\n"


def main(path: Path, out: Path) -> None:
    tokenizer = whole(path, out.with_suffix(".work"))
    out.with_suffix(".work").unlink(missing_ok=True)
    place = GOLDEN["place"]
    texts = [place["prefix"], " " + place["prefix"], place["suffix"], "shape.py\n"]
    text = cut(tokenizer, texts)
    left = Tokenizer.from_str(text)
    for each in texts:
        assert left.encode(each).ids == tokenizer.encode(each).ids, each
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
