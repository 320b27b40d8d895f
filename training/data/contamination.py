"""What of HumanEval a text holds, so that the training set can be kept clear of the evaluation."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUM_WORDS = 10  # of a gram

_WORD = re.compile(r"\w+|[^\w\s]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_COMMON_STARTS = ("import", "from", "for ", "if ", "return")  # of lines that anyone writes


class _WordIds(dict[str, int]):
    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


class Contamination:
    """HumanEval's prompts and solutions as 10-grams of words, telling lines and entry points.

    Attributes:
        lines: stripped lines of 40 characters or more that are no common statement.
        entry: finds a definition of an entry point.
        grams: hash to the words of each 10-gram.
        telling: hashes of those with six or more words of three letters.
    """

    def __init__(self, rows: list[dict[str, str]]) -> None:
        """Take the rows of the single-line infilling file."""
        self._word_ids = _WordIds()
        texts = {r["prompt"] + r["canonical_solution"] + r["suffix"] for r in rows}
        self.lines = {
            line
            for text in texts
            for line in map(str.strip, text.splitlines())
            if len(line) >= 40 and not line.startswith(_COMMON_STARTS)
        }
        names = "|".join(sorted({r["entry_point"] for r in rows}))
        self.entry = re.compile(rf"^\s*def ({names})\(", re.M)
        self.grams: dict[int, str] = {}
        for text in texts:
            words = _WORD.findall(text)
            for i, value in enumerate(self._hashes(words).tolist()):
                self.grams[value] = " ".join(words[i : i + NUM_WORDS])
        self.telling = frozenset(
            value
            for value, gram in self.grams.items()
            if sum(len(word) >= 3 and word.isalpha() for word in gram.split()) >= 6
        )
        self._all = np.sort(np.array(list(self.grams), np.uint64))

    @classmethod
    def from_file(cls, path: Path) -> Contamination:
        """Read HumanEval-SingleLineInfilling.jsonl.gz."""
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return cls([json.loads(line) for line in file])

    def find(self, text: str) -> tuple[list[int], bool]:
        """Return the hashes of HumanEval's 10-grams in a text, and whether one is telling."""
        hashes = self._hashes(_WORD.findall(text))
        place = np.minimum(np.searchsorted(self._all, hashes), len(self._all) - 1)
        found = set(hashes[self._all[place] == hashes].tolist())
        return sorted(found), not found.isdisjoint(self.telling)

    def _hashes(self, words: list[str]) -> NDArray[np.uint64]:
        """Return a hash of every `NUM_WORDS` words in a row."""
        ids = np.array([self._word_ids[word] for word in words], np.uint64)
        size = max(0, len(ids) - NUM_WORDS + 1)
        value = np.zeros(size, np.uint64)
        with np.errstate(over="ignore"):
            for k in range(NUM_WORDS if size else 0):
                value = value * _MULTIPLIER + ids[k : k + size]
        return value
