"""Credentials in the text, and placeholders of the same length that the engine gets instead."""

from __future__ import annotations

from .hidden import EngineTexts, HiddenSecrets
from .masked import HoldsSecret, Masked, without_placeholders

__all__ = ["EngineTexts", "HiddenSecrets", "HoldsSecret", "Masked", "without_placeholders"]
