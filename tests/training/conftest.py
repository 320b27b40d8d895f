"""Documents, a tokenizer and a tiny model for the recipe's tests."""

from pathlib import Path

import pytest
import torch

from keyturn.engine.files.catalog import EMBEDDED, resolve
from training.data.documents import Document
from training.data.samples import Builder
from training.export import write_gguf
from training.model.decoder import TINY, Model

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import { open } from './files';

/**
 * Adds things up.
 * Nothing else.
 */
export function total(items: number[], start = 0): number {
  let sum = start;
  for (const item of items) {
    sum += item;
  }
  return Math.round(sum);
}

class Shop {
  constructor(name) { this.name = name; this.rows = `first
  second`; }

  sell(item, count) {
    const price = total([item.price, count]);
    return { price, name: this.name, é: "ü" };
  }
}
"""


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    return resolve(EMBEDDED).with_name("tokenizer.json")


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    paths = sorted((ROOT / "engine").rglob("[!_]*.py"))
    found = [Document("keyturn", path.name, path.read_text(encoding="utf-8")) for path in paths]
    found.append(Document("algo:sums", "sums.py", "import math\n\n\n" + PROGRAM))
    found.append(Document("npm:shop", "npm/shop/shop.ts", SCRIPT.replace("items", "goods")))
    found.append(Document("npm:shop", "npm/shop/shop.js", SCRIPT.replace(": number[]", "")))
    return found


PROGRAM = '''def hypotenuse(a, b):
    """Return the longest side of a triangle with a right angle."""
    squares = [side * side for side in (a, b)]
    total = 0
    for square in squares:
        total += square
    return math.sqrt(total)
'''


@pytest.fixture(scope="session")
def builder(documents, tokenizer_path) -> Builder:
    return Builder(documents, tokenizer_path)


@pytest.fixture(scope="session")
def tiny() -> Model:
    """A random model whose greedy choices are clear."""
    torch.manual_seed(5)
    model = Model(TINY)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.dim() == 2 else 1 + 0.1 * torch.rand_like(p))
    return model


@pytest.fixture(scope="session")
def exported(tiny, tmp_path_factory) -> Path:
    """The tiny model as a GGUF file, with the sidecar of the embedded one."""
    folder = tmp_path_factory.mktemp("exported")
    base = resolve(EMBEDDED)
    for name in ("fim.json", "tokenizer.json"):
        (folder / name).write_bytes(base.with_name(name).read_bytes())
    write_gguf(base, tiny, folder / "tiny.gguf", "Tiny")
    return folder / "tiny.gguf"
