"""Every error a user can meet, with the value that caused it and the remedy in its message.

No torch here: the server imports this module to raise what the host reported.
"""

from __future__ import annotations

import errno

# What torch's CPU allocator, its file mapping and CUDA's libraries say in a plain RuntimeError.
_ALLOCATORS_SAY = (
    "DefaultCPUAllocator: ",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class EngineError(Exception):
    """Base of all errors with a message for people; `code` is stable and meant for programs."""

    code = "engine-error"


class ModelNotFound(EngineError):
    """The model name, folder or file is not on this disk."""

    code = "model-not-found"


class ModelLoadError(EngineError):
    """The model files exist but cannot be used: corrupt, incomplete or of an unknown kind."""

    code = "model-load-failed"


class DownloadFailed(EngineError):
    """A model could not be fetched, written, or is not what its source says."""

    code = "download-failed"


class ContextTooLong(EngineError):
    """A sequence does not fit the model's context."""

    code = "context-too-long"


class OutOfMemory(EngineError):
    """The device or the machine could not provide the memory asked for."""

    code = "out-of-memory"


class BadPosition(EngineError):
    """An offset, line or column lies outside the text."""

    code = "bad-position"


class BadRequest(EngineError):
    """A message or a parameter is malformed; nothing was changed."""

    code = "bad-request"


class DocumentRefused(EngineError):
    """The document is too large, binary, or was set aside after it crashed the host twice."""

    code = "document-refused"


class VersionMismatch(EngineError):
    """An edit names another version than the one held here: send the whole text."""

    code = "version-mismatch"


class HostUnavailable(EngineError):
    """The engine host could not be started or was lost."""

    code = "host-unavailable"


class Cancelled(EngineError):
    """The caller cancelled; raised by the `check` callback between layers and between tokens."""

    code = "cancelled"


class WarmingUp(EngineError):
    """The cache is not there yet and the caller wanted no longer to wait; it is warmed on."""

    code = "warming-up"


class Interrupted(EngineError):
    """More urgent work waits; raised by the `check` callback, the work is to be tried again."""

    code = "interrupted"


def memory_error(error: BaseException) -> OutOfMemory | None:
    """Return what to answer with if an exception says that memory ran out, else None.

    Python and numpy raise MemoryError, the operating system OSError with ENOMEM, torch a class of
    its own for devices (told by its name: no torch here) and a plain RuntimeError for the CPU.
    """
    if isinstance(error, OutOfMemory):
        return error
    text = str(error)
    ran_out = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and any(part in text for part in _ALLOCATORS_SAY))
    )
    if not ran_out:
        return None
    first_line = next((line for line in text.splitlines() if line.strip()), "out of memory")
    return OutOfMemory(f"{first_line:.200}; lower cache_bytes or close documents")


def from_code(code: str, message: str) -> EngineError:
    """Rebuild an error that came over the wire as `code` and `message`."""
    for kind in EngineError.__subclasses__():
        if kind.code == code:
            return kind(message)
    return EngineError(message)
