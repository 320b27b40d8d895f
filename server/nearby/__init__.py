"""What the model is shown of other files: which are read, and which of their lines."""

from .shown import OtherFiles

__all__ = ["OtherFiles"]
