"""What the engine is told, as plain data: no torch here, and no defaults.

The defaults live in `keyturn.server.settings`, the only place that has them.
"""

from __future__ import annotations

from dataclasses import dataclass

POLICIES = ("full", "prefix", "turn", "repair", "heal")
HEALS = ("full", "worthwhile", "off")
# What a completion may be wanted to be, where that is known.
WANTED = ("line", "block")
# How many layers a token runs through; or a number of them.
DEPTHS = ("full", "exact", "fast")
PACKED = ("q4", "q8")
PLANES = ("b2", "b3", "b4", "b5", "b6", "b7", "b8")
QUANTS = (*PACKED, *PLANES)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one engine runs, for all its documents.

    Attributes:
        device: "auto", "cpu" or a torch device such as "cuda:0".
        dtype: "auto" (bfloat16 where the hardware computes in it, else float32), "float32"
            or "bfloat16".
        num_threads: torch CPU threads; 0 leaves torch's choice.
        cache_bytes: bound on all documents' KV caches together; least recently used goes first.
        window_tokens: tokens of a document the model sees; 0 takes the model's own figure.
        chunk_tokens: rows computed in one forward pass at most; work is lost at most that far back
            when a pass is interrupted.
        quant: "q4" or "q8": round the model's matrices to blocks of 4 or 8 bits when it is loaded;
            "b2" to "b8": the layers' to so many bit planes, on a GPU; None or "none" leaves them
            as they are. Absent it is None, which changes nothing: a client that does not know it
            has said nothing about it.
        repair_budget_ms: what repair may take before a completion, as `RepairLimit.max_ms`.
        heal: what idle time heals: "full": every stale row, in order; "worthwhile": by what rows
            are worth, until little is left to gain; "off": nothing.
        cold_budget_ms: what may be computed before a completion, as `ColdLimit.max_ms`; where it
            is more, under a policy that repairs, the window is narrow at first and grows.
    """

    device: str
    dtype: str
    num_threads: int
    cache_bytes: int
    window_tokens: int
    chunk_tokens: int
    quant: str | None = None
    repair_budget_ms: float | None = None
    heal: str = "full"
    cold_budget_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class CompletionParams:
    """How one completion is decoded.

    Attributes:
        max_tokens: most tokens to generate, those for white space generated again not counted.
        temperature: 0 is greedy.
        top_p: nucleus sampling's mass, in (0, 1].
        seed: seed of the sampling; the same seed and text give the same completion.
        stop: the completion ends before the first of these strings.
        time_budget_ms: decoding ends with what there is this long after the first token, and the
            stop reason is "time"; what comes before that token, above all the prefill of a place
            that is new, is not counted. 0 is no limit.
        min_probability: decoding ends before the token with which the joint probability of all
            falls below it, and the stop reason is "doubt"; a word is left out as a whole. 0
            changes nothing.
        min_first_word: the same within the first word, or at the first token if that is none;
            without `min_probability` it changes nothing.
        assumed: what is taken to have been written at the place already; the completion is what
            comes after it.
        num_candidates: completions to be returned at most, no two alike.
        depth: one of `DEPTHS`, or a number of layers in digits. "full" runs every token through all
            layers by itself; "exact" gives the same text sooner; "fast" trades some quality for
            time; a number decodes with so many of the first layers.
        place: what kind it is of, "line", "rest" or "gap" (other text follows on the line). Where
            it is said and the model has a rule for it, a completion whose first line is likely to
            be wrong ends with "low_confidence"; where `min_probability` is 0 it only says so.
        wanted: what the completion is to be, one of `WANTED`: "line", one line; "block", several;
            "" says nothing. A model that was trained to be told is told by one token behind the
            prompt (`FimTemplate.wanted_ids`); for any other nothing changes.
    """

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    time_budget_ms: float
    min_probability: float = 0.0
    min_first_word: float = 0.0
    assumed: str = ""
    num_candidates: int = 1
    depth: str = "full"
    place: str = ""
    wanted: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion.

    Attributes:
        text: the raw text after the cursor, before trimming.
        token_ids: the generated tokens, end token excluded.
        num_prompt_tokens: tokens of the layout.
        num_reused_tokens: of those, rows that were not computed for this completion.
        ttft_ms: from the call to the first token.
        total_ms: from the call to the end.
        num_layers_run: decoder layers that were run for a decoded token, on average, those of
            drafts that were of no use counted with them.
        stop_reason: "end", "stop", "length", "time", "doubt" or "low_confidence".
        probabilities: of each token in `token_ids`, that the model gives it at temperature 1; where
            white space before the cursor is generated again, among the tokens that agree with it.
        other_texts: further candidates, the likelier first.
        other_stop_reasons: theirs.
        is_narrow: the model saw less than the whole window, which was not computed yet.
        is_doubtful: the first line is likely to be wrong; never where `place` was not said.
    """

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_reused_tokens: int
    ttft_ms: float
    total_ms: float
    num_layers_run: float
    stop_reason: str
    probabilities: tuple[float, ...]
    other_texts: tuple[str, ...] = ()
    other_stop_reasons: tuple[str, ...] = ()
    is_narrow: bool = False
    is_doubtful: bool = False
