"""White space that stands on one side of the cursor already, or that would be left alone there."""

from __future__ import annotations

from .lines import Sides


def drop_doubled_space(kept: str, around: Sides) -> str:
    """Drop white space at either end of the completion where the line has some there."""
    before, rest = around.before, around.rest
    if before[-1:] in (" ", "\t") and before.strip():
        kept = kept.lstrip(" \t")
    if rest[:1] in (" ", "\t") and rest.strip():
        kept = kept.rstrip(" \t")
    return kept


def leaves_white_space(kept: str, around: Sides) -> bool:
    """Whether nothing but indentation would be left of the cursor's line: `kept` is all below."""
    is_indented = bool(around.before) and not around.before.strip()
    return is_indented and kept.startswith("\n")
