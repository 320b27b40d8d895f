"""What clients in the wild send amiss, put right before lsprotocol reads it.

A change that cannot be read costs the document, and an `initialize` that cannot be read the whole
session; both are too much for a field that nobody here needs.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

UNKNOWN_VERSION = -(2**31)
_LARGEST = 2**31 - 1

# Capabilities the server reads: kept when others make the whole unreadable.
_CAPABILITIES = {
    "experimental": {"keyturn": dict},
    "general": {"positionEncodings": list},
    "textDocument": {"inlineCompletion": dict},
    "window": {"workDoneProgress": bool},
    "workspace": {"configuration": bool, "didChangeConfiguration": dict},
}


def mended(method: str, params: Any) -> Any:  # noqa: ANN401 - decoded JSON
    """Return `params` of `method` without the known slips; what is not known stays as it came."""
    if method == "workspace/didChangeConfiguration":
        return {"settings": None, **(params if isinstance(params, dict) else {})}
    if not isinstance(params, dict):
        return params
    if method == "initialize":
        return {**params, "rootUri": _uri(params.get("rootUri"))}
    document = params.get("textDocument")
    if method not in ("textDocument/didOpen", "textDocument/didChange"):
        return params
    if not isinstance(document, dict):
        return params
    version = _version(document.get("version"))
    if method == "textDocument/didOpen":
        language = str(document.get("languageId") or "")
        number = 0 if version == UNKNOWN_VERSION else version
        return {"textDocument": {**_text(document), "languageId": language, "version": number}}
    document = {**document, "version": version}
    changes = params.get("contentChanges")
    if isinstance(changes, list):
        changes = [_change(item) if isinstance(item, dict) else item for item in changes]
    return {"textDocument": document, "contentChanges": changes}


def essentials(params: Any) -> Any:  # noqa: ANN401 - decoded JSON
    """Return of `initialize` only what the server needs, for when the rest cannot be read."""
    if not isinstance(params, dict):
        return params
    given = params.get("capabilities")
    capabilities: dict[str, dict[str, Any]] = {}
    for group, names in _CAPABILITIES.items():
        found = given.get(group) if isinstance(given, dict) else None
        for name, kind in names.items():
            if isinstance(found, dict) and isinstance(found.get(name), kind):
                capabilities.setdefault(group, {})[name] = found[name]
    process = params.get("processId")
    return {
        "processId": process if type(process) is int else None,
        "rootUri": None,
        "capabilities": capabilities,
        "initializationOptions": params.get("initializationOptions"),
    }


def _uri(uri: object) -> str | None:
    try:
        return uri if isinstance(uri, str) and urlsplit(uri) else None
    except ValueError:
        return None


def _version(version: object) -> int:
    if type(version) is int and UNKNOWN_VERSION < version <= _LARGEST:
        return version
    return UNKNOWN_VERSION


def _change(change: dict[str, Any]) -> dict[str, Any]:
    span = change.get("range")
    kept = {key: value for key, value in _text(change).items() if key == "text"}
    return kept if span is None else {**kept, "range": _clamped(span)}


def _text(holder: dict[str, Any]) -> dict[str, Any]:
    """Leave out a text that is none, which lsprotocol would read as the word None."""
    if isinstance(holder.get("text"), str):
        return holder
    return {key: value for key, value in holder.items() if key != "text"}


def _clamped(value: Any) -> Any:  # noqa: ANN401 - decoded JSON
    """Bound the positions of a range: "to the end" may be any large number."""
    if isinstance(value, dict):
        return {key: _clamped(item) for key, item in value.items()}
    return _LARGEST if type(value) in (int, float) and value > _LARGEST else value
