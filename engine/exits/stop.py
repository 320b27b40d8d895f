"""The stop: a completion whose first line is likely to turn out wrong is not computed any further.

After each token of the first line a logistic function of what the logits say anyway gives the odds
that the line will be wrong: of the probabilities so far, of the latest token, and of how uncertain
it was. "When Neural Code Completion Models Size up the Situation" (arXiv 2401.09964, section 4)
stops by a classifier of hidden states; here these add nothing to the logits
(`benchmarks/bench_stop.py`, which fits the rule as well).
"""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..model.decoder import Decoder
from ..wire.errors import ModelLoadError
from .depth_file import fingerprint

FORMAT = 1
SHIPPED = Path(__file__).parents[1] / "embedded" / "stop.npz"
# In the order of the weights.
FEATURES = (
    "log of the joint probability",
    "square root of minus that",
    "log of the latest probability",
    "entropy of the latest distribution",
    "place: rest of a line",
    "place: gap",
)
_LEAST = 1e-4  # a probability below it says no more
_LEAST_LOG = -100.0  # and its share in an entropy is nothing
_REMEDY = "remove it"


@dataclass(frozen=True, slots=True)
class StopRule:
    """What a model's completions are given up by.

    Attributes:
        weights: of `FEATURES`.
        bias: added to their sum.
        most: a completion goes on up to these log odds that its first line will be wrong.
    """

    weights: tuple[float, ...]
    bias: float
    most: float

    def odds(self, features: tuple[float, ...]) -> float:
        """Return the log odds that the first line will be wrong."""
        pairs = zip(self.weights, features, strict=True)
        return self.bias + sum(weight * value for weight, value in pairs)


def features(log_joint: float, probability: float, entropy: float, place: str) -> tuple[float, ...]:
    """Return `FEATURES` after a token.

    Args:
        log_joint: natural logarithm of the probability of the first line so far.
        probability: of the latest token.
        entropy: in nats, of the distribution it is from.
        place: "line", "rest" or "gap".
    """
    latest = math.log(max(probability, _LEAST))
    root = math.sqrt(-log_joint) if log_joint < 0 else 0.0
    return log_joint, root, latest, entropy, float(place == "rest"), float(place == "gap")


class StopWatch:
    """A rule at work on one completion.

    Attributes:
        is_doubtful: the first line was likely to be wrong after some token.
    """

    def __init__(self, rule: StopRule, place: str) -> None:
        """Watch a completion from its first token on, at such a place (see `features`)."""
        self._rule, self._place = rule, place
        self._log_joint = 0.0
        self._is_over = False
        self.is_doubtful = False

    def see(
        self, piece: bytes, probability: float, logits: Tensor, entropy: float | None = None
    ) -> None:
        """Take note of a token.

        Args:
            piece: its bytes.
            probability: the model's.
            logits: (vocab_size,) float32, -inf where none was allowed.
            entropy: of their distribution, in nats; None: to be found out.
        """
        if self._is_over or self.is_doubtful:
            return
        self._is_over = b"\n" in piece
        self._log_joint += math.log(max(probability, _LEAST))
        if entropy is None:
            logs = logits.log_softmax(-1)
            entropy = -float((logs.exp() * logs.clamp_min(_LEAST_LOG)).sum())
        seen = features(self._log_joint, probability, entropy, self._place)
        self.is_doubtful = self._rule.odds(seen) > self._rule.most


def find(decoder: Decoder, path: Path = SHIPPED) -> StopRule | None:
    """Return the rule that is shipped for a model, None if there is none for it.

    Raises:
        ModelLoadError: the file is damaged or of another format.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            version = int(file["format"])
            if version != FORMAT:
                raise ModelLoadError(f"{path} has format {version}, not {FORMAT}; {_REMEDY}")
            model = str(file["model"])
            weights = tuple(np.asarray(file["weights"], dtype=np.float64).tolist())
            bias, most = float(file["bias"]), float(file["most"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{path} is damaged ({error}); {_REMEDY}") from None
    if len(weights) != len(FEATURES) or not all(map(math.isfinite, (*weights, bias, most))):
        raise ModelLoadError(f"{path} is damaged: its figures are no rule; {_REMEDY}")
    return StopRule(weights, bias, most) if model == fingerprint(decoder) else None


def save(path: Path, rule: StopRule, decoder: Decoder) -> None:
    """Write a model's rule, in place of what is there.

    Raises:
        OSError: the file cannot be written.
    """
    part = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(
        part,
        format=FORMAT,
        model=fingerprint(decoder),
        weights=np.array(rule.weights),
        bias=rule.bias,
        most=rule.most,
    )
    part.replace(path)
