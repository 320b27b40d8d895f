"""Cut a raw completion to what should be inserted. Pure functions of text.

A rule cuts only what would certainly be wrong in the file, because a good suggestion cut short is a
worse complaint than a bad one shown.
"""

from __future__ import annotations

from .lines import first_line, last_line
from .settled import Settling
from .trim import Trimmed, trim

__all__ = ["Settling", "Trimmed", "first_line", "last_line", "trim"]
