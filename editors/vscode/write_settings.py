"""Write the server's settings into the extension's manifest: `python write_settings.py`.

`server/settings.py` is where a default, a bound and a description are; a test says when the
manifest is behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from keyturn.server.settings import SECTION, Settings

MANIFEST = Path(__file__).parent / "package.json"

# What a project may choose for itself. The rest is the user's alone: a workspace must not decide
# what runs, how much memory it takes, or what is kept of it.
_OF_A_PROJECT = {
    "cold_wait_ms",
    "debounce_ms",
    "enabled",
    "languages",
    "max_tokens",
    "seed",
    "temperature",
    "time_budget_ms",
    "top_p",
}
_TYPES = {"bool": "boolean", "int": "integer", "float": "number", "str": "string", "None": "null"}
_RANGE = re.compile(r"(?:a|a whole) number from (\S+) to (\S+)")
_OPEN_RANGE = re.compile(r"a number above (\S+), up to (\S+)")

# What the extension reads itself.
_OWN = {
    "server.path": {
        "type": "string",
        "default": "",
        "description": "The server's command, an absolute path; where it is empty, keyturn on PATH "
        "or the one that the extension has set up.",
    },
    "server.args": {
        "type": "array",
        "items": {"type": "string"},
        "default": [],
        "description": "Arguments before the subcommand.",
    },
}


def properties() -> dict[str, dict[str, Any]]:
    """Return what `contributes.configuration.properties` has to be."""
    found = {f"{SECTION}.{name}": {**schema, "scope": "machine"} for name, schema in _OWN.items()}
    for item in fields(Settings):
        scope = "window" if item.name in _OF_A_PROJECT else "machine"
        found[f"{SECTION}.{item.name}"] = {**_schema(item), "scope": scope}
    found[f"{SECTION}.trace.server"] = {
        "type": "string",
        "enum": ["off", "messages", "verbose"],
        "default": "off",
        "description": "What of the messages between editor and server is logged; verbose has your "
        "text in it.",
        "scope": "machine",
    }
    return found


def manifest(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest `before` with the settings as they are now."""
    contributes = dict(before["contributes"])
    contributes["configuration"] = {**contributes["configuration"], "properties": properties()}
    machine = [name for name, one in properties().items() if one["scope"] == "machine"]
    limited = {**before["capabilities"]["untrustedWorkspaces"], "restrictedConfigurations": machine}
    capabilities = {**before["capabilities"], "untrustedWorkspaces": limited}
    return {**before, "contributes": contributes, "capabilities": capabilities}


def as_text(found: Mapping[str, Any]) -> str:
    """Return a manifest as npm writes it."""
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _schema(item: Field[Any]) -> dict[str, Any]:
    doc: str = item.metadata["doc"]
    accepts: str = item.metadata["check"].accepts
    default: Any = list(item.default) if isinstance(item.default, tuple) else item.default
    if isinstance(default, float) and default.is_integer():
        default = int(default)  # as npm writes numbers
    described = f"{doc[0].upper()}{doc[1:]}: {accepts}."
    schema: dict[str, Any] = {"default": default, "description": described}
    kind = str(item.type)
    types = [_TYPES.get(part) for part in kind.split(" | ")]
    if None not in types:
        schema = {"type": types[0] if len(types) == 1 else types, **schema}
    elif kind == "Sequence[str]":
        schema = {"type": "array", "items": {"type": "string"}, **schema}
    if accepts.startswith("one of "):
        schema["enum"] = json.loads(f"[{accepts.removeprefix('one of ')}]")
    elif bounds := _RANGE.fullmatch(accepts):
        schema["minimum"], schema["maximum"] = map(_number, bounds.groups())
    elif bounds := _OPEN_RANGE.fullmatch(accepts):
        schema["exclusiveMinimum"], schema["maximum"] = map(_number, bounds.groups())
    return schema


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def main() -> None:
    """Bring the manifest up to date."""
    before = json.loads(MANIFEST.read_text(encoding="utf-8"))
    MANIFEST.write_text(as_text(manifest(before)), encoding="utf-8")


if __name__ == "__main__":
    main()
