"""What a status bar says: one state, one line, and a sentence of help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STARTING, LOADING, READY, COMPLETING, HEALING, PAUSED, FAILED = (
    "starting",
    "loading",
    "ready",
    "completing",
    "healing",
    "paused",
    "failed",
)

_HELP = {
    STARTING: "The engine is being started; completions come as soon as it answers.",
    LOADING: "The model is being read; completions come when it is there.",
    READY: "Completions come when you pause.",
    COMPLETING: "A completion is being computed.",
    HEALING: "What edits left stale is computed again while nobody waits; completions come first.",
    PAUSED: "Nothing is suggested until you resume.",
    FAILED: "No completions come. `keyturn doctor` says what to do, the log says what happened.",
}
# The reason for silence stands above it, and may be one that stays.
_HELP_WHEN_SILENT = "Where there is something to suggest, it comes when you pause."


def summary(
    engine: Mapping[str, Any],
    *,
    is_busy: bool,
    is_paused: bool,
    last_reason: str | None,
    host: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return `state`, `text` and `help`, and while the model is loaded `percent`.

    Args:
        engine: `EngineClient.status`.
        is_busy: a completion is being computed.
        is_paused: suggestions are paused everywhere, or where somebody is.
        last_reason: why the last request gave nothing, None if it gave something.
        host: `EngineClient.host_status`, if the host was asked.
    """
    state = engine["state"]
    if state == STARTING:
        return _said(STARTING, str(engine["reason"]))
    if state == LOADING:
        percent = int(engine.get("percent") or 0)
        return _said(LOADING, f"loading {percent} %") | {"percent": percent}
    if state != READY:
        return _said(FAILED, str(engine["reason"]))
    if is_paused:
        return _said(PAUSED, "paused")
    if is_busy:
        return _said(COMPLETING, "completing")
    if last_reason is None and host and host.get("num_rows_to_heal") and not host.get("is_idle"):
        return _said(HEALING, f"healing {host['num_rows_to_heal']} rows")
    if last_reason is None:
        return _said(READY, "ready")
    return _said(READY, f"no suggestion: {last_reason}") | {"help": _HELP_WHEN_SILENT}


def _said(state: str, text: str) -> dict[str, Any]:
    return {"state": state, "text": text, "help": _HELP[state]}
