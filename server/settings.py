"""Every default of the product, with its unit and its check: the only place that has them.

Editors send only what the user changed; a bad value is reported and the default used instead.

Not a setting, for it is about the machine and not the user: the environment variable
KEYTURN_KERNELS is "auto" (Triton on a GPU; on a CPU the C library and weights that oneDNN ordered;
what does not work is replaced by torch), "reference" (torch always) or "triton" (also in Triton's
interpreter, if TRITON_INTERPRET is set; for tests). `keyturn doctor` shows what came of it.
KEYTURN_PACKED_BYTES bounds the folder where weights that `quant` q4 or q8 rounded are kept.
KEYTURN_EARLY_LAUNCH=0 keeps kernels on Hopper from starting early, see
`kernels/matmul/early_launch.py`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..engine.wire.config import DEPTHS, HEALS, POLICIES, QUANTS, CompletionParams, EngineConfig
from ..engine.wire.errors import BadRequest

SECTION = "keyturn"


@dataclass(frozen=True, slots=True)
class Check:
    """What one setting accepts: in words for the user, and as a test."""

    accepts: str
    test: Callable[[Any], bool]


def _whole(low: int, high: int) -> Check:
    return Check(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def _number(low: float, high: float) -> Check:
    return Check(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and low <= value <= high,
    )


def _choice(*values: str | None) -> Check:
    words = ", ".join("null" if value is None else f'"{value}"' for value in values)
    return Check(f"one of {words}", lambda value: isinstance(value, str | None) and value in values)


def _depth() -> Check:
    words = ", ".join(json.dumps(word) for word in DEPTHS)

    def test(value: object) -> bool:
        digits = str(value) if type(value) is int else value
        return isinstance(digits, str) and (digits in DEPTHS or _is_count(digits))

    return Check(f"{words} or a number of layers", test)


def _is_count(digits: str) -> bool:
    return digits.isascii() and digits.isdecimal() and len(digits) < 6 and int(digits) > 0


def _languages() -> Check:
    return Check(
        'a list of language identifiers such as ["python"]',
        lambda value: (
            isinstance(value, list | tuple)
            and all(isinstance(item, str) and item.strip() != "" for item in value)
        ),
    )


def _flag() -> Check:
    return Check("true or false", lambda value: isinstance(value, bool))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _text(what: str) -> Check:
    return Check(what, _is_text)


def _setting(default: Any, check: Check, doc: str) -> Any:  # noqa: ANN401 - a dataclass field
    return field(default=default, metadata={"check": check, "doc": doc})


@dataclass(frozen=True)
class Settings:
    """Everything a user can choose. `field.metadata["doc"]` says what each one is."""

    # The model and its engine.
    model: str = _setting(
        "embedded",
        _text('"embedded", a folder, a .gguf file or a Hugging Face id in the local cache'),
        "model that completes",
    )
    adapter: str | None = _setting(
        None,
        Check("a folder, or null", lambda value: value is None or _is_text(value)),
        "LoRA adapter in PEFT's format that is served beside the model's weights",
    )
    layout: str | None = _setting(
        None, _choice(None, "spm", "psm"), "order of prefix and suffix; null is the model's own"
    )
    policy: str = _setting("repair", _choice(*POLICIES), "how an edit is served")
    repair_budget_ms: float = _setting(
        300.0,
        _number(0, 600_000),
        "longest repair of the cache after an edit, before a completion; 0 is no limit",
    )
    # Under a second a suggestion still counts as an answer; a repair and decoding come on top.
    cold_budget_ms: float = _setting(
        600.0,
        _number(0, 600_000),
        "longest computation before a completion at a new place: the window is narrow at first "
        "where the whole would take longer, and grows; 0 is always the whole",
    )
    heal: str = _setting(
        "worthwhile",
        _choice(*HEALS),
        "what is computed again in idle time: all that is stale, what is worth it, or nothing",
    )
    device: str = _setting(
        "auto", _text('"auto", "cpu" or a torch device such as "cuda:0"'), "where the model runs"
    )
    dtype: str = _setting(
        "auto", _choice("auto", "float32", "bfloat16"), "number format of weights and cache"
    )
    quant: str | None = _setting(
        None,
        _choice(None, "none", *QUANTS),
        "what matrices are rounded to when the model is loaded: q4 or q8, blocks of 4 or 8 bits; "
        "b2 to b8, bit planes, on a GPU; null leaves them as they are",
    )
    num_threads: int = _setting(0, _whole(0, 1024), "CPU threads; 0 leaves torch's choice")
    cache_bytes: int = _setting(
        1_000_000_000, _whole(1_000_000, 10**13), "bound on all documents' caches, in bytes"
    )
    window_tokens: int = _setting(
        0, _whole(0, 1_000_000), "tokens of a document the model sees; 0 is the model's own figure"
    )
    chunk_tokens: int = _setting(256, _whole(1, 65_536), "rows computed in one forward pass")

    # The engine host, which all of a user's language servers share.
    host_idle_s: float = _setting(
        300.0, _number(0, 86_400), "the host ends this long after its last client has gone"
    )
    host_start_timeout_s: float = _setting(
        20.0, _number(0.1, 600), "longest wait for the host to answer, without its model"
    )
    host_retry_max_s: float = _setting(
        30.0, _number(0.01, 3600), "longest pause between two attempts to start the host"
    )

    # One completion.
    max_tokens: int = _setting(64, _whole(1, 4096), "most tokens of a completion")
    temperature: float = _setting(0.0, _number(0, 10), "0 always takes the likeliest token")
    top_p: float = _setting(
        1.0,
        Check("a number above 0, up to 1", lambda v: type(v) in (int, float) and 0 < v <= 1),
        "probability mass sampled from when the temperature is above 0",
    )
    seed: int = _setting(0, _whole(0, 2**63 - 1), "seed of the sampling")
    time_budget_ms: float = _setting(
        2000.0, _number(0, 600_000), "decoding ends with what it has then; 0 is no limit"
    )
    depth: str | int = _setting(
        "exact",
        _depth(),
        "layers that a token runs through: all, one token after the other; all, with drafts that "
        "never change what is written; fewer where that costs little; so many of the first",
    )

    # When the language server asks. Most people leave 100 to 200 ms between two keys: a request
    # started 75 ms after one is cancelled by the next key at worst, and the cache is hot by then.
    enabled: bool = _setting(True, _flag(), "suggest at all")
    languages: Sequence[str] = _setting(
        (),
        _languages(),
        "suggest only in these languages (LSP identifiers); [] is what the model was trained on",
    )
    debounce_ms: float = _setting(
        75.0,
        _number(0, 10_000),
        "shortest pause in typing before an automatic completion is shown; up to four times as "
        "much where somebody types slowly",
    )
    confidence: str = _setting(
        "balanced",
        _choice("any", "eager", "balanced", "reserved"),
        "how sure the model must be of all that an automatic suggestion shows; what was asked for "
        "is shown however sure it is",
    )
    num_candidates: int = _setting(
        3, _whole(1, 3), "candidates at most, of a completion that was asked for"
    )
    speculate: bool = _setting(
        True,
        _flag(),
        "compute ahead: from `debounce_ms` on, before it is certain that you pause, and what comes "
        "after a suggestion, for when it is accepted",
    )
    # A request that waits costs nothing: the next key ends it. A stub, or silence, costs trust.
    cold_wait_ms: float = _setting(
        30_000.0,
        _number(0, 600_000),
        "longest wait of an automatic completion for model and cache at a new place, 0: no limit; "
        "one that was asked for waits as long as it takes",
    )
    completion_items: str = _setting(
        "auto",
        _choice("auto", "always", "never"),
        "answer textDocument/completion: auto means only to editors without inline completion",
    )

    other_files: bool = _setting(
        False,
        _flag(),
        "show the model lines like those at the cursor of open documents, of files beside the "
        "document and of those it imports, within the workspace",
    )
    hide_secrets: bool = _setting(
        True, _flag(), "the model gets placeholders of the same length instead of credentials"
    )
    event_log: bool = _setting(
        False,
        _flag(),
        "note locally what becomes of suggestions, without any text; `keyturn stats` shows it",
    )

    # Documents the server refuses, with a reason.
    max_document_bytes: int = _setting(
        10_000_000, _whole(1, 10**9), "largest document, in bytes of UTF-8"
    )
    max_line_chars: int = _setting(100_000, _whole(1, 10**9), "longest line, in characters")

    def engine_config(self) -> EngineConfig:
        """Return what the engine is told."""
        return EngineConfig(
            device=self.device,
            dtype=self.dtype,
            num_threads=self.num_threads,
            cache_bytes=self.cache_bytes,
            window_tokens=self.window_tokens,
            chunk_tokens=self.chunk_tokens,
            quant=self.quant,
            repair_budget_ms=self.repair_budget_ms,
            heal=self.heal,
            cold_budget_ms=self.cold_budget_ms,
        )

    def completion_params(self, stop: tuple[str, ...] = ()) -> CompletionParams:
        """Return how one completion is decoded; it ends before the first of `stop`."""
        return CompletionParams(
            max_tokens=self.max_tokens,
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            seed=self.seed,
            stop=stop,
            time_budget_ms=float(self.time_budget_ms),
            depth=str(self.depth),
        )


# On the command line a completion takes the time it takes: its text must not depend on the load.
COMMAND_LINE = Settings(time_budget_ms=0.0)

# Flags of the command line that are not called as their setting.
_FLAGS = {
    "num_threads": "--threads",
    "host_idle_s": "--idle-s",
    "num_candidates": "--candidates",
}
_FIELDS = {item.name: item for item in fields(Settings)}


def from_options(options: object, base: Settings | None = None) -> tuple[Settings, list[str]]:
    """Return the settings in `options` over `base`, and one warning for each that is unusable.

    Args:
        options: what an editor sent: a mapping of settings, or one that has them under "keyturn";
            None changes nothing.
        base: what keys that are absent (or bad) keep; the defaults if None.
    """
    base = base or Settings()
    if options is None:
        return base, []
    if isinstance(options, Mapping) and SECTION in options:
        options = options[SECTION]
        if options is None:
            return base, []
    if not isinstance(options, Mapping):
        return base, [f"settings {_shown(options)} are not an object: all of them are ignored"]
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for key, value in options.items():
        item = _FIELDS.get(key)
        if item is None:
            warnings.append(_unknown(str(key), value))
        elif item.metadata["check"].test(value):
            values[key] = value
        else:
            warnings.append(
                f"setting {key}: {_shown(value)} is not {item.metadata['check'].accepts}; "
                f"{_shown(getattr(base, key))} is used"
            )
    return replace(base, **values), warnings


def with_values(base: Settings, **values: object) -> Settings:
    """Return `base` with settings from the command line; None leaves one as it is.

    Raises:
        BadRequest: a value is not accepted; the message names it and what is.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        check: Check = _FIELDS[name].metadata["check"]
        if not check.test(value):
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise BadRequest(f"{flag} {value}: must be {check.accepts}")
    return replace(base, **given)


def _unknown(key: str, value: object) -> str:
    near = difflib.get_close_matches(_snake(key), _FIELDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(_FIELDS)}"
    return f"unknown setting {key} = {_shown(value)} is ignored; {hint}"


def _snake(key: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in key)


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
