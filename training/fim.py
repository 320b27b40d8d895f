r"""Fill-in-the-middle samples out of documents: windows, layouts, classes of the targets.

Layouts, in SmolLM2's spare special tokens (prefix, suffix and middle are tokenized apart, as an
editor has to do it; a cut falls on any character):
    context   <file_sep><filename>other/path\n snippet     in a few samples
    header    <file_sep><filename>path\n                   in about 40 %
    PSM       PRE prefix SUF suffix MID middle END
    EFIM      PRE prefix SUF suffix MID typed middle END   (typed since the prefix was frozen)
    SPM       PRE SUF suffix MID prefix middle END
    plain     text [END at the end of a file]
"""

from __future__ import annotations

import ast
import bisect
import builtins
import os
import random
import re
from collections.abc import Iterator

import corpus
import spans
from spans import LONG, SHORT, SMALL, Mix, Source, pick_span

END, FILE_SEP, FILENAME, PRE, SUF, MID = 0, 5, 6, 8, 9, 10
MAX_TOKENS = 2048  # in a sample
# classes of a target: nothing to learn, plain text, middle, text that sees the suffix, first token
# of a middle, its end, and places inside where it could have ended (the start of a line)
NONE, OTHER, MIDDLE, SEES_SUFFIX, FIRST, LAST, LINE_START = range(7)
PSM, SPM, EFIM, PLAIN = range(4)
LAYOUTS = ("psm", "spm", "efim", "plain")
LANGUAGES = ("py", "js", "ts", "tsx")

_IDENTIFIER = re.compile(r"[A-Za-z_$][\w$]{3,}")
_IMPORTS = re.compile(
    r"^\s*from\s+([\w.]+)\s+import\s+\(?([\w, ]*)|(?:from|require\()\s*['\"]\.{1,2}/([^'\"]+)['\"]",
    re.M,
)
_DEFINITION = (
    r"^[ \t]*(?:export\s+)?(?:default\s+)?(?:async\s+)?"
    r"(?:def|class|function|const|interface|type)\s+(\w+)"
)
_DEFINITIONS = re.compile(_DEFINITION, re.M)
_BUILTINS = set(dir(builtins)) | {"self", "__name__"}
_PLAIN_IMPORTS = set(
    "math re itertools collections functools typing random string operator heapq bisect copy "
    "datetime hashlib decimal fractions statistics numbers time json __future__ dataclasses enum "
    "abc textwrap cmath numpy".split()
)


def language_of(path: str) -> str:
    """Return a path's language."""
    return corpus.LANGUAGES["." + path.rsplit(".", 1)[-1]]


def small_programs(text: str) -> list[str]:
    """Return module-level Python functions that need only plain imports, as programs."""
    try:
        tree = ast.parse(text) if text.isascii() else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    imports, programs = {}, []
    for node in tree.body if tree else ():
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.split(".")[0] in _PLAIN_IMPORTS:
                    alias = f" as {a.asname}" if a.asname else ""
                    imports[(a.asname or a.name).split(".")[0]] = f"import {a.name}{alias}"
        elif (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and (node.module or "").split(".")[0] in _PLAIN_IMPORTS
        ):
            for a in node.names:
                alias = f" as {a.asname}" if a.asname else ""
                imports[a.asname or a.name] = f"from {node.module} import {a.name}{alias}"
    for node in tree.body if tree else ():
        if (
            not isinstance(node, ast.FunctionDef)
            or node.decorator_list
            or not 4 <= node.end_lineno - node.lineno <= 70
        ):
            continue
        if (
            node.name.startswith(("test", "main", "__"))
            or ast.get_docstring(node, clean=False) is None
        ):
            continue
        free = _free_names(node)
        if free <= imports.keys():
            head = "".join(sorted({imports[name] + "\n" for name in free}))
            source = "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno])
            if len(source) <= 4500:
                programs.append((head + "\n\n" if head else "") + source + "\n")
    return programs


def _free_names(function: ast.FunctionDef) -> set[str]:
    load, stored = set(), {function.name}
    for n in ast.walk(function):
        if isinstance(n, ast.Name):
            (load if isinstance(n.ctx, ast.Load) else stored).add(n.id)
        elif isinstance(n, ast.arg):
            stored.add(n.arg)
        elif isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            stored.add(n.name)
        elif isinstance(n, ast.ExceptHandler) and n.name:
            stored.add(n.name)
        elif isinstance(n, (ast.Import, ast.ImportFrom)):
            stored.update((a.asname or a.name).split(".")[0] for a in n.names)
    return load - stored - _BUILTINS


Sample = tuple[list[int], list[int], int, int]  # tokens, classes, kind, layout


class Builder:
    """Make samples of documents; holds what cross-file context needs to know of all of them."""

    def __init__(self, documents: list[tuple[str, str, str]]) -> None:
        """Index the (package, path, text) documents by folder and by stem."""
        self.documents = documents
        self.by_folder: dict[tuple, list[int]] = {}
        self.by_stem: dict[tuple, list[int]] = {}
        for i, (package, path, _) in enumerate(documents):
            folder, name = os.path.split(path)
            self.by_folder.setdefault((package, folder), []).append(i)
            self.by_stem.setdefault((package, name.split(".")[0]), []).append(i)
        self.tokenizer = None

    def open_tokenizer(self, path: str) -> None:
        """Open the tokenizer (in each process: it does not outlive a fork)."""
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(path)
        words = [
            self.tokenizer.id_to_token(i) or "" for i in range(self.tokenizer.get_vocab_size())
        ]
        self.opens_line = [w.startswith("Ċ") for w in words]
        self.closes_line = [w.endswith("Ċ") for w in words]

    def encode(self, *texts: str) -> list[list[int]]:
        """Return the tokens of each text."""
        return [
            e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def snippets(
        self, rng: random.Random, document: int, window: str, middle: str
    ) -> list[tuple[str, str]]:
        """Return one or two (path, chunk) of other files that answer what the window asks.

        A chunk begins at a definition of a name that the middle uses, if a candidate file has one;
        else the chunk that shares most identifiers with the window is taken.
        """
        package, path, text = self.documents[document]
        candidates = set()
        for match in _IMPORTS.finditer(text):
            module, names, relative = match.groups()
            stems = (
                [module.rsplit(".", 1)[-1], *names.replace(" ", "").split(",")[:3]]
                if module
                else []
            )
            stems += [relative.rsplit("/", 1)[-1].split(".")[0]] if relative else []
            for stem in stems:
                hits = self.by_stem.get((package, stem), ())
                if 0 < len(hits) <= 4:
                    candidates.update(hits)
        candidates = set(rng.sample(sorted(candidates), min(5, len(candidates))))
        near = self.by_folder[package, os.path.dirname(path)]
        candidates |= set(rng.sample(near, min(3, len(near))))
        wanted, asked = set(_IDENTIFIER.findall(window)), set(_IDENTIFIER.findall(middle))
        scored = []
        for i in candidates - {document}:
            other = self.documents[i][2]
            for match in _DEFINITIONS.finditer(other):
                if match[1] in asked:
                    chunk = "\n".join(
                        other[match.start() : match.start() + 1500].split("\n")[
                            : rng.randrange(4, 24)
                        ]
                    )
                    scored.append((1.0 + rng.random(), i, chunk))
                    break
            lines = other.split("\n")
            for _ in range(2):
                k = rng.randrange(0, max(1, len(lines) - 15))
                chunk = "\n".join(lines[k : k + rng.randrange(8, 32)])[:1500]
                if have := set(_IDENTIFIER.findall(chunk)):
                    scored.append((len(have & wanted) / (20 + len(have)), i, chunk))
        scored.sort(reverse=True)
        chosen, used = [], set()
        for _, i, chunk in scored:
            if i not in used and len(chosen) < rng.choice((1, 1, 2)):
                used.add(i)
                chosen.append((self.documents[i][1], chunk.strip("\n") + "\n"))
        return chosen

    def fim(
        self,
        rng: random.Random,
        source: Source,
        a: int,
        b: int,
        mix: Mix,
        document: int | None = None,
        path: str = "",
    ) -> Sample | None:
        """Return one sample (tokens, classes, kind, layout) of the window [a, b), or None.

        With `document` it may get cross-file context; with `path` a header.
        """
        span = pick_span(rng, source, a, b, mix)
        if span is None:
            return None
        kind, start, end = span
        text = source.text
        if kind not in ("args", "expr", "random") and rng.random() < 0.1:
            b = end  # nothing after the cursor
        layout = rng.choices((PSM, SPM, EFIM), (0.34, 0.5, 0.16))[0]
        split = start  # where the frozen prefix ends and the typed text begins
        if layout == EFIM:
            split = max(a, start - max(1, int(rng.lognormvariate(3.2, 1.2))))
        prefix, typed, middle, suffix = self.encode(
            text[a:split], text[split:start], text[start:end], text[end:b]
        )
        if not middle or len(middle) > 900:
            return None
        tokens: list[int] = []
        if document is not None:
            for other, chunk in self.snippets(rng, document, text[a:b], text[start:end]):
                head, body = self.encode(other + "\n", chunk)
                tokens += [FILE_SEP, FILENAME, *head, *body[:400]]
        if path:
            tokens += [FILE_SEP, FILENAME, *self.encode(path + "\n")[0]]
        excess = len(tokens) + len(prefix) + len(typed) + len(middle) + len(suffix) + 4 - MAX_TOKENS
        if excess > 0:  # first the far prefix goes, then the far suffix
            cut = min(excess, len(prefix) * 2 // 3)
            prefix = prefix[cut:]
            suffix = suffix[: max(0, len(suffix) - (excess - cut))]
        classes = [OTHER if document is not None else NONE] * len(tokens)
        marks = [MIDDLE] * len(middle)
        for i in range(1, len(middle)):
            if self.opens_line[middle[i]] or self.closes_line[middle[i - 1]]:
                marks[i] = LINE_START
        marks[0] = FIRST
        marks.append(LAST)
        if layout == SPM:
            tokens += [PRE, SUF, *suffix, MID, *prefix, *middle, END]
            classes += [
                NONE,
                NONE,
                *[OTHER] * len(suffix),
                NONE,
                *[SEES_SUFFIX] * len(prefix),
                *marks,
            ]
        else:
            tokens += [PRE, *prefix, SUF, *suffix, MID, *typed, *middle, END]
            classes += [NONE, *[OTHER] * len(prefix), NONE, *[OTHER] * len(suffix), NONE]
            classes += [*[SEES_SUFFIX] * len(typed), *marks]
        return (
            (tokens, classes, spans.KINDS.index(kind), layout)
            if len(tokens) <= MAX_TOKENS
            else None
        )

    def plain(self, text: str, whole: bool) -> Sample:
        """Return a sample of plain text; `whole` if the file ends with it."""
        tokens = self.encode(text)[0][: MAX_TOKENS - 1]
        return [*tokens, END], [*[OTHER] * len(tokens), OTHER if whole else NONE], 0, PLAIN

    def samples(
        self, rng: random.Random, document: int, num_small: int = 1, natural: bool = False
    ) -> Iterator[Sample | None]:
        """Yield samples of one pass; `natural`: no plain text and no small programs."""
        package, path, text = self.documents[document]
        language = language_of(path)
        source = Source(text, language)
        program_set = package.startswith("algo:") or package.startswith("npm:@datastructures")
        if language == "py" and not natural:
            for program in small_programs(text):
                small = Source(program, "py")
                for _ in range(num_small):
                    yield self.fim(
                        rng, small, 0, len(program), SMALL, path=path if rng.random() < 0.1 else ""
                    )
        a, size_of_text = 0, len(text)
        while a < size_of_text:
            where = rng.random()
            if where < 0.50:
                size = rng.randrange(200, 700)
            elif where < 0.915:
                size = rng.randrange(700, 1800)
            else:
                size = rng.randrange(4000, 7200)
            long = size >= 4000
            if program_set and size_of_text < 4000:
                size = size_of_text
            b = a + size
            if b > size_of_text - 200:
                b = size_of_text
            else:
                b = source.starts[min(bisect.bisect_left(source.starts, b), len(source.starts) - 1)]
            mix = SMALL if program_set else LONG if long else SHORT
            if b - a > 40 and (natural or rng.random() > 0.03):
                context = not long and not program_set and rng.random() < 0.10
                header = context or rng.random() < (0.15 if program_set else 0.4)
                yield self.fim(
                    rng, source, a, b, mix, document if context else None, path if header else ""
                )
            elif not natural:
                yield self.plain(text[a:b], b == size_of_text)
            a = b
