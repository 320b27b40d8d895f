"""Fetch the published vocabularies that golden ids are of, and check what is kept of them.

    python -m tests.engine.published_vocabularies WORK [--write]

They are parts of packages, which pip and npm fetch into the folder WORK (150 MB; there once, they
are not fetched again). Checked are, with vocabularies as a whole: the texts whose ids llama.cpp
publishes beside its own, and the ids of `fim_prompts.json`'s place in each family whose vocabulary
such a package has. `--write` cuts those vocabularies down to what that place needs.
"""

import argparse
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer

from keyturn.engine.files.gguf_file import GGUFFile
from keyturn.engine.files.gguf_vocabulary import build_tokenizer
from keyturn.engine.prompt.fim import find_template
from keyturn.engine.prompt.layout import lay_out
from keyturn.engine.tokens.tokenizer import Tokenizer
from keyturn.engine.wire.errors import ModelLoadError

from .cut_vocabulary import GOLDEN, cut

FETCH = {
    "npm": "npm pack --silent {name}@{version}",
    "PyPI": f"{sys.executable} -m pip download --quiet --no-deps --no-binary :all: "
    "{name}=={version}",
}
LLAMA_CPP = {"from": "PyPI", "name": "llama-cpp-python", "version": "0.3.36"}
TEXTS = "\n__ggml_vocab_test__\n"


def archive(package: dict[str, str], work: Path) -> Path:
    """Return a package's archive, fetched unless it is there."""
    name, version = package["name"], package["version"]
    stem = name.removeprefix("@").replace("/", "-")
    names = {f"{stem}-{version}.tgz", f"{stem.replace('-', '_')}-{version}.tar.gz"}
    for is_fetched in (False, True):
        found = [work / each for each in names if (work / each).is_file()]
        if found or is_fetched:
            return found[0]
        command = FETCH[package["from"]].format(**package).split()
        subprocess.run(command, cwd=work, check=True)
    raise AssertionError


def member(package: dict[str, str], ending: str, work: Path) -> Path:
    """Return a file of a package, by how its path ends."""
    out = work / f"{Path(package['name']).name}-{package['version']}-{Path(ending).name}"
    if not out.is_file():
        with tarfile.open(archive(package, work)) as opened:
            (name,) = [each for each in opened.getnames() if each.endswith(ending)]
            content = opened.extractfile(name)
            assert content is not None
            out.write_bytes(content.read())
    return out


def named(raw: RawTokenizer, marks: dict[str, int]) -> RawTokenizer:
    """Return a tokenizer with names for ids that stand for nothing in it, or are beyond it."""
    described = json.loads(raw.to_str())
    vocabulary = described["model"]["vocab"]
    old = {at: name for name, at in vocabulary.items() if at in marks.values()}
    kept = [token for token in described["added_tokens"] if token["id"] not in marks.values()]
    for name, at in marks.items():
        vocabulary.pop(old.get(at), None)
        vocabulary[name] = at
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        kept.append({"id": at, "content": name, "special": True, **flags})
    described["added_tokens"] = sorted(kept, key=lambda token: token["id"])
    return RawTokenizer.from_str(json.dumps(described))


def whole(real: dict, work: Path) -> RawTokenizer:
    """Return the vocabulary of a family's entry, with its marks."""
    path = member(real["package"], real["package"]["file"], work)
    if path.suffix == ".gguf":
        raw = build_tokenizer(GGUFFile(path))
    else:
        raw = RawTokenizer.from_file(str(path))
    return named(raw, real.get("marks", {}))


def ids_of(real: dict, raw: RawTokenizer) -> list[int]:
    """Return the ids of a family's prompt: its text encoded as one, marks and all.

    Only the text's parts are ours; that marks are found in it is the tokenizers library's doing.
    """
    template = find_template(raw.token_to_id, vocab_size=real["size"])
    assert template is not None and template.family == real["family"]
    place = real.get("place", GOLDEN["place"])
    text, cursor = place["prefix"] + place["suffix"], len(place["prefix"])
    layout, header, window = template.layout, real.get("header", ""), (0, len(text))
    made = lay_out(text, cursor, cursor, template, layout, window, real.get("bos"), header)
    raw = RawTokenizer.from_str(raw.to_str())
    raw.encode_special_tokens = False
    names = [[raw.id_to_token(at) for at in part.token_ids] for part in made.segments]
    prompt = "".join(
        "".join(marks) + part.text for marks, part in zip(names, made.segments, strict=True)
    )
    return raw.encode(prompt, add_special_tokens=False).ids


def check_texts(work: Path) -> None:
    """Hold what we read of llama.cpp's vocabularies against the ids that it publishes."""
    with tarfile.open(archive(LLAMA_CPP, work)) as opened:
        names = [Path(name).name for name in opened.getnames() if name.endswith(".gguf.out")]
    for name in sorted(names):
        path, texts, ids = (
            member(LLAMA_CPP, f"/models/{name.removesuffix('.out')}{ending}", work)
            for ending in ("", ".inp", ".out")
        )
        try:
            file = GGUFFile(path)
            tokenizer = Tokenizer(build_tokenizer(file))
        except ModelLoadError as error:
            sys.stdout.write(f"{name}: not read: {str(error).partition(': ')[2]}\n")
            continue
        # llama.cpp puts SentencePiece's space before a text, which we do only where it is due.
        is_pieces = file.metadata["tokenizer.ggml.model"] == "llama"
        num = 0
        pairs = zip(texts.read_text().split(TEXTS), ids.read_text().splitlines(), strict=False)
        for text, expected in pairs:
            given = f" {text}" if is_pieces and text else text
            found = tokenizer.encode(given).token_ids.tolist()
            assert found == [*map(int, expected.split())], text
            num += 1
        sys.stdout.write(f"{name}: {num} texts have llama.cpp's ids\n")


def check_prompt(real: dict, work: Path, *, write: bool) -> None:
    """Hold a family's golden ids against its vocabulary as a whole, which may be cut down anew."""
    raw = whole(real, work)
    found = ids_of(real, raw)
    sys.stdout.write(f"{real['family']}: {found}\n")
    assert found == real["ids"], f"other ids than {real['ids']}"
    if write:
        place = real.get("place", GOLDEN["place"])
        texts = [place["prefix"], " " + place["prefix"], place["suffix"], "shape.py\n"]
        out = Path(__file__).with_name("vocabularies") / real["vocabulary"]
        out.write_text(cut(raw, texts), encoding="utf-8")


def main() -> None:
    """Check everything, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--write", action="store_true", help="cut vocabularies")
    parser.add_argument("--prompts-only", action="store_true", help="leave llama.cpp's texts out")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    if not args.prompts_only:
        check_texts(args.work)
    for real in GOLDEN["real"]:
        if "package" in real:
            check_prompt(real, args.work, write=args.write)


if __name__ == "__main__":
    main()
