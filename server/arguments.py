"""What flags say: settings, files and lists of names, each checked with one clear error."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..engine.files.catalog import resolve
from ..engine.wire.errors import BadRequest, DocumentRefused
from .settings import COMMAND_LINE, Settings, with_values

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Flags that are called as the settings they set.
_GIVEN_AS_CALLED = (
    *("model", "layout", "device", "dtype", "quant"),
    *("max_tokens", "temperature", "top_p", "depth"),
)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the command line's settings with what flags say otherwise."""
    given = {name: getattr(arguments, name, None) for name in _GIVEN_AS_CALLED}
    threads, seed = getattr(arguments, "threads", None), getattr(arguments, "seed", None)
    settings = with_values(COMMAND_LINE, **given, num_threads=threads, seed=seed)
    if getattr(arguments, "download", False):
        resolve(settings.model, download=True)
    return settings


def names_of(value: str | None) -> list[str] | None:
    """Return the language identifiers of a flag, without white space around them."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    if not all(names):
        raise BadRequest(
            f"--languages '{value}': must be language identifiers with commas between them, for "
            "instance python,sql"
        )
    return names


def read(name: str) -> str:
    """Return the text of a file; it is UTF-8."""
    try:
        data = Path(name).read_bytes()
    except FileNotFoundError:
        raise BadRequest(f"no such file: {name}") from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"cannot read {name}: {getattr(error, 'strerror', error)}") from None
    return decoded(name, data)


def decoded(name: str, data: bytes) -> str:
    """Return the text of what a file holds."""
    try:
        return data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentRefused(
            f"{name} is not UTF-8 (byte {error.start}), so it is taken for a binary file; "
            "save it as UTF-8"
        ) from None


def is_number(text: str) -> bool:
    """Whether a word is a whole number, of a sensible length."""
    return text.isdecimal() and len(text) < 20  # int() refuses thousands of digits
