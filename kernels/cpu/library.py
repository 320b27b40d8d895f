"""The C library of the decode step: found, loaded, or why it is not there."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from dataclasses import dataclass
from pathlib import Path

import torch

from . import c_types

ISAS = ("generic", "avx2", "avx512")  # the order of the levels in cpu_step_types.h


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded C library.

    Attributes:
        handle: its functions.
        isa: one of `ISAS`: the instruction set that it runs with here.
        parallel: torch's own `GOMP_parallel`; 0 if torch has none: one thread then. A second
            OpenMP runtime would fight with torch's idle threads, which spin for milliseconds.
    """

    handle: ctypes.CDLL
    isa: str
    parallel: int

    @property
    def why(self) -> str:
        """What it runs with, in words, for `keyturn doctor`."""
        return f"{self.isa}, " + ("torch's threads" if self.parallel else "one thread")


@functools.cache
def load(isa: str = "auto") -> Library | str:
    """Load the library, or say in words why it cannot be used. Never raises.

    Args:
        isa: one of `ISAS`, or "auto" for the best that this processor has.
    """
    folder = Path(__file__).parent
    places = [folder / f"_cpu_step{end}" for end in importlib.machinery.EXTENSION_SUFFIXES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        return "not built; reinstall keyturn on Linux with a C compiler at hand"
    return load_file(found, isa)


def load_file(path: Path, isa: str = "auto") -> Library | str:
    """Load the library from a file; arguments and result as for `load`."""
    if isa not in ("auto", *ISAS):
        return f"instruction set {isa!r} is not one of {', '.join(ISAS)}"
    try:
        handle = ctypes.CDLL(str(path))
        handle.keyturn_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        handle.keyturn_run.restype = ctypes.c_double
        handle.keyturn_scratch_bytes.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        handle.keyturn_scratch_bytes.restype = ctypes.c_int64
        handle.keyturn_layout.restype = ctypes.c_int64
        is_current = handle.keyturn_layout() == c_types.LAYOUT
        best = handle.keyturn_best_isa()
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded ({error}); reinstall keyturn"
    if not is_current:
        return f"{path.name} was built for another version of keyturn; reinstall keyturn"
    if isa == "auto" and not best:
        return "this processor has no AVX2, and torch is faster without"
    level = best if isa == "auto" else ISAS.index(isa)
    if level > best:
        return f"this processor has no {isa}"
    return Library(handle, ISAS[level], _torch_parallel())


def _torch_parallel() -> int:
    """Return the address of the `GOMP_parallel` that torch itself is linked against, or 0.

    A look-up in a library searches its dependencies too, whatever the wheel calls them.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
