"""Holes in real files that no model here was trained on, by kind of span, language and context."""

from __future__ import annotations

import bisect
import itertools
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quality.fim_fetch import COMPILED_LANGUAGES, LANGUAGES, File, is_written, repeated
from quality.fim_tasks import HELD_OUT, Task

if TYPE_CHECKING:
    from training.data.spans import Source

ROOT = Path(__file__).resolve().parents[2]
# Tokens of context, lowest and highest, of a hole.
BINS = {"<500": (60, 499), "500-999": (500, 999), "1000-2000": (1000, 2000)}
# A longer middle says more about where people stop than about what a model knows.
MAX_MIDDLE_TOKENS = 80
_CHARS_PER_TOKEN = 3.7
_LANGUAGES = LANGUAGES | COMPILED_LANGUAGES
_ATTEMPTS = 120  # to find a hole of one kind, language and length


def reserved_files(documents: Path) -> list[File]:
    """Return what people wrote of the reserved packages in a file of `training.collect`.

    Args:
        documents: held_compiled.bin.zst, which has packages of Debian's archive in Go, Rust, Java,
            C and C++; or held.bin.zst, with the others. Languages without holes here are left out.
    """
    sys.path.insert(0, str(ROOT))
    try:
        from training.data.documents import load_documents
    except ImportError as error:
        raise SystemExit(f"{documents} needs zstandard ({error}): pip install '.[train]'") from None
    finally:
        sys.path.remove(str(ROOT))
    found = []
    for package, path, text in load_documents(documents):
        name = package.removeprefix("reserved:")
        is_reserved = name != package and path not in repeated(name)
        if Path(path).suffix in _LANGUAGES and is_reserved and is_written(path, text):
            found.append((package, path, text))
    return sorted(found)


def draw(
    files: list[File], num_tasks: int, *, seed: int, num_tokens: Callable[[str], int]
) -> list[Task]:
    """Return holes, as many of each kind, language and length as there are to be found.

    Spans are those that training draws (`pick_span`): the cursor may be anywhere. A document is a
    window of a file, cut at line ends, without the span.

    Args:
        files: where to draw from.
        num_tasks: how many; fewer come back if there are not as many.
        seed: of the draw.
        num_tokens: counts a text's tokens.
    """
    sys.path.insert(0, str(ROOT))
    try:
        from training.data.spans import KINDS, Source, pick_span
    except ImportError as error:
        raise SystemExit(
            f"held-out files need tree-sitter ({error}): pip install '.[bench]'"
        ) from None
    finally:
        sys.path.remove(str(ROOT))

    rng = random.Random(seed)
    by_language = _by_language(files)
    kinds = [kind for kind in KINDS if kind != "plain"]
    cells = list(itertools.product(kinds, sorted(by_language), BINS))
    rng.shuffle(cells)
    sources: dict[File, Source] = {}
    tasks: dict[str, Task] = {}

    def attempt(kind: str, language: str, length: str) -> Task | None:
        packages = by_language[language]
        # By the root of their size: neither the largest package nor one with a single file rules.
        sizes = [math.sqrt(sum(len(text) for *_, text in some)) for some in packages.values()]
        package = rng.choices(list(packages.values()), sizes)[0]
        file = rng.choices(package, [len(text) for *_, text in package])[0]
        if file not in sources:
            sources[file] = Source(file[2], language)
        source = sources[file]
        low, high = BINS[length]
        a, b = _window(rng, source, int(rng.uniform(low, high) * _CHARS_PER_TOKEN))
        if b - a < 40 or (span := pick_span(rng, source, a, b, {kind: 1.0})) is None:
            return None
        found, start, end = span
        middle, prefix, suffix = file[2][start:end], file[2][a:start], file[2][end:b]
        if found != kind or not middle.strip() or num_tokens(middle) > MAX_MIDDLE_TOKENS:
            return None
        context = num_tokens(prefix) + num_tokens(suffix)
        if not low <= context <= high:
            return None
        return Task(
            name=f"held-out/{file[0]}/{file[1]}@{start}-{end}",
            group=HELD_OUT,
            number=len(tasks),
            prefix=prefix,
            suffix=suffix,
            middle=middle,
            path=file[1],
            kind=kind,
            language=language,
            context_tokens=context,
        )

    while cells and len(tasks) < num_tasks:
        for cell in cells.copy():
            found = (task for _ in range(_ATTEMPTS) if (task := attempt(*cell)) is not None)
            task = next((task for task in found if task.name not in tasks), None)
            if task is None:
                cells.remove(cell)
            elif len(tasks) < num_tasks:
                tasks[task.name] = task
    return list(tasks.values())


def length_of(task: Task) -> str:
    """Return the bin of a task's context."""
    return next(name for name, (_, high) in BINS.items() if task.context_tokens <= high)


def _by_language(files: list[File]) -> dict[str, dict[str, list[File]]]:
    found: dict[str, dict[str, list[File]]] = {}
    for file in files:
        language = _LANGUAGES[Path(file[1]).suffix]
        found.setdefault(language, {}).setdefault(file[0], []).append(file)
    return found


def _window(rng: random.Random, source: Source, size: int) -> tuple[int, int]:
    """Return a stretch of whole lines of about that many characters, all if there are not."""
    starts, end = source.starts, len(source.text)
    last = bisect.bisect_left(starts, max(1, end - size))
    a = starts[rng.randrange(max(1, last))]
    at = bisect.bisect_left(starts, a + size)
    return a, starts[at] if at < len(starts) else end
