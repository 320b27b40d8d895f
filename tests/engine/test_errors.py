"""Which exceptions say that memory ran out, and which only sound like it."""

import errno
import mmap

import numpy as np
import pytest
import torch

from keyturn.engine.wire.errors import EngineError, HostUnavailable, OutOfMemory, memory_error


def fail_on_the_cpu():
    torch.empty(1 << 60, dtype=torch.int8)


def fail_in_numpy():
    np.empty(1 << 60, dtype=np.int8)


def fail_in_python():
    bytearray(1 << 60)


def fail_in_the_operating_system():
    mmap.mmap(-1, 1 << 60)


def fail_on_a_device():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nDetails")


@pytest.mark.parametrize(
    "fail",
    [
        fail_on_the_cpu,
        fail_in_numpy,
        fail_in_python,
        fail_in_the_operating_system,
        fail_on_a_device,
    ],
)
def test_memory_that_ran_out_is_told_from_what_really_is_raised(fail) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each kind has its own
        fail()
    told = memory_error(raised.value)
    assert isinstance(told, OutOfMemory)
    assert "\n" not in str(told)
    assert str(told).endswith("; lower cache_bytes or close documents")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("\n\n"),
        OSError(errno.ENOMEM, "no"),
        RuntimeError("unable to mmap 9 bytes from file <m>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried 4 bytes"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_other_wordings_of_allocators(error) -> None:
    assert isinstance(memory_error(error), OutOfMemory)


def test_an_error_that_is_one_already_keeps_its_message() -> None:
    error = OutOfMemory("no memory for a cache of 3 tokens")
    assert memory_error(error) is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unsupported memory format option Preserve"),
        RuntimeError("cannot allocate a stream while a graph is captured"),
        RuntimeError("shape mismatch"),
        ValueError("DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOSPC, "disk full"),
        EngineError("out of memory, says a document's text"),
        HostUnavailable("Cannot allocate memory"),
        KeyError("OutOfMemoryError"),
    ],
)
def test_what_only_sounds_like_it_is_something_else(error) -> None:
    assert memory_error(error) is None
