"""How near a completion is to the text that stood there: six measures out of libraries.

The choice is that of "Language Models for Code Completion: A Practical Evaluation" (arXiv
2402.16197, section 4): exact match, edit similarity, BLEU-4, ROUGE-L, METEOR and chrF. Words of
code are identifiers, numbers and single signs, for all measures that count words; case matters.
The libraries are the package's extra `bench`.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

NAMES = ("edit", "bleu", "rouge_l", "meteor", "chrf")
_LIBRARIES = ("rapidfuzz", "sacrebleu", "rouge_score", "nltk")
_WORD = re.compile(r"\w+|[^\w\s]")


class Words:
    """The words of code, also in the form in which rouge-score asks for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Return identifiers, numbers and signs, in order."""
        return _WORD.findall(text)


class _NoSynonyms:
    """Stands in for WordNet, whose data would have to be downloaded: no word has synonyms.

    METEOR then matches words that are equal and words with the same stem.
    """

    def synsets(self, word: str) -> list[Any]:
        return []


def missing() -> list[str]:
    """Return the names of the libraries that are not installed."""
    return [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]


def is_exact(got: str, expected: str) -> bool:
    """Whether two texts are the same but for white space at their ends."""
    return got.rstrip() == expected.rstrip()


def edit_similarity(got: str, expected: str) -> float:
    """Return how similar two texts are, from 0 to 100; white space at the ends does not count."""
    from rapidfuzz.distance import Levenshtein

    return 100 * Levenshtein.normalized_similarity(got.rstrip(), expected.rstrip())


def scores(got: str, expected: str) -> dict[str, float]:
    """Return the measures named in `NAMES` of one completion, each from 0 to 100.

    BLEU is the sentence's, over the orders that the texts are long enough for. White space at the
    ends does not count.
    """
    import sacrebleu
    from nltk.translate.meteor_score import single_meteor_score

    got, expected = got.rstrip(), expected.rstrip()
    written, wanted = Words().tokenize(got), Words().tokenize(expected)
    wordnet: Any = _NoSynonyms()
    meteor = (
        single_meteor_score(wanted, written, preprocess=str, wordnet=wordnet)
        if wanted and written
        else float(wanted == written)
    )
    return {
        "edit": edit_similarity(got, expected),
        "bleu": sacrebleu.sentence_bleu(
            " ".join(written), [" ".join(wanted)], tokenize="none", use_effective_order=True
        ).score,
        "rouge_l": 100 * _rouge().score(expected, got)["rougeL"].fmeasure,
        "meteor": 100 * meteor,
        "chrf": sacrebleu.sentence_chrf(got, [expected]).score,
    }


def corpus_bleu(got: Sequence[str], expected: Sequence[str]) -> float:
    """Return BLEU-4 of all completions together, from 0 to 100."""
    import sacrebleu

    written, wanted = (
        [" ".join(Words().tokenize(text)) for text in texts] for texts in (got, expected)
    )
    return sacrebleu.corpus_bleu(written, [wanted], tokenize="none", force=True).score


@functools.cache
def _rouge() -> Any:  # noqa: ANN401 - the library has no types
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())
