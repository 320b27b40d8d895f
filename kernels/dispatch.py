"""Which version of every op a device gets, chosen once, and why.

The engine holds a `Kernels` and calls its fields: nothing is decided again on the way to an op.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import reference as reference_attention
from .cpu import library as cpu_library
from .cpu.linear import CpuHead, CpuLinear, choose_plan, silu_mul
from .cpu.step import CpuStep
from .cpu.step_weights import StepWeights
from .layer import reference as reference_step
from .rotary import reference
from .weights.linear import DenseLinear, Linear, Matrix
from .weights.packed import BitWeight

# For tests, and to rule the kernels out when something is wrong; described in server/settings.py.
VARIABLE = "KEYTURN_KERNELS"
CHOICES = ("auto", "triton", "reference")


@dataclass(frozen=True, slots=True)
class Kernels:
    """The ops of one device, as `reference` describes them.

    Attributes:
        backend: "triton", "cpu" or "reference".
        why: the reason, in words, for `keyturn doctor`.
        rope_shift: turns cached keys.
        write_rows: rotates and stores one layer's rows.
        linear: makes a projection of a matrix (N, K), a bias (N,) or None, and the activations'
            dtype.
        head: makes the projection to logits, of a matrix and that dtype.
        rms_norm: norms rows.
        add_rms_norm: adds to the residual stream, and norms that.
        silu_mul: lets a gate's values through.
        fused_linear: a product of up to four rows with what precedes and follows it.
        attend_slots: attention of a few rows to slots in any order.
        record_dependencies: what many rows attend to, mean over heads.
        whole_step: makes a `CpuStep`, which runs all layers over a few rows in one call;
            None where there is none.
        to_planes: rounds a matrix to a number of bit planes; None where no kernel multiplies those.
        bit_linear: makes a projection of bit planes, else as `linear`; None likewise.
    """

    backend: str
    why: str
    rope_shift: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], None]
    write_rows: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], Tensor]
    linear: Callable[[Matrix, Tensor | None, torch.dtype], Linear]
    head: Callable[[Matrix, torch.dtype], Linear]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    silu_mul: Callable[[Tensor], Tensor]
    fused_linear: Callable[..., Tensor]
    attend_slots: Callable[..., Tensor]
    record_dependencies: Callable[..., None]
    whole_step: Callable[[StepWeights], CpuStep] | None = None
    to_planes: Callable[[Matrix, int], BitWeight] | None = None
    bit_linear: Callable[[BitWeight, Tensor | None, torch.dtype], Linear] | None = None


def choose(device: torch.device) -> Kernels:
    """Return the ops for a device, tried out once for each value of KEYTURN_KERNELS."""
    return _chosen(device, os.environ.get(VARIABLE, "auto"))


def try_out(device: torch.device, wanted: str) -> Kernels:
    """Find out which ops a device gets as things are now; `choose` remembers what this said.

    Triton is used where it can compile for the device and gives the right answer to one small
    task, which is tried. Whatever stands against it ends in the reference and a reason, never in
    an error.

    Args:
        device: that computes.
        wanted: one of CHOICES; anything else is named in the reason and counts as "auto".
    """
    note = ""
    if wanted not in CHOICES:
        note = f"; {VARIABLE}={wanted} is not one of {', '.join(CHOICES)} and is ignored"
        wanted = "auto"
    if wanted == "reference":
        return _reference(f"{VARIABLE}=reference")
    obstacle = _obstacle(device, wanted) or failed_trial(device)
    if obstacle and device.type == "cpu" and wanted == "auto":
        return _cpu(note)
    if obstacle:
        return _reference(obstacle + note)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    how = "compiled for sm_{}{}".format(*capability) if capability else "interpreted"
    return _triton(f"{how}, tried on one key{note}")


_chosen = functools.cache(try_out)


def _reference(why: str) -> Kernels:
    return Kernels(
        "reference",
        why,
        rope_shift=reference.rope_shift,
        write_rows=reference.write_rows,
        linear=DenseLinear,
        head=lambda matrix, dtype: DenseLinear(matrix, None, dtype),
        rms_norm=reference_step.rms_norm,
        add_rms_norm=reference_step.add_rms_norm,
        silu_mul=reference_step.silu_mul,
        fused_linear=reference_step.fused_linear,
        attend_slots=reference_attention.attend_slots,
        record_dependencies=reference_attention.record_dependencies,
    )


def _cpu(note: str) -> Kernels:
    library = cpu_library.load()
    plan = choose_plan(torch.bfloat16)
    is_built = isinstance(library, cpu_library.Library)
    few = f"few rows in C ({library.why})" if is_built else f"no C library: it is {library}"

    def linear(matrix: Matrix, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        # The C library reads a dense matrix where it is: packed, it would be in memory twice.
        if is_built and isinstance(matrix, Tensor):
            return DenseLinear(matrix, bias, dtype)
        return CpuLinear(matrix, bias, choose_plan(dtype))

    return dataclasses.replace(
        _reference(f"{few}; many rows: {plan.why}{note}"),
        backend="cpu",
        linear=linear,
        head=lambda matrix, dtype: CpuHead(matrix, choose_plan(dtype)),
        silu_mul=silu_mul,
        whole_step=functools.partial(CpuStep, library) if is_built else None,
    )


def _triton(why: str) -> Kernels:
    # Only here: importing Triton takes most of a second, and machines without a GPU lack it.
    from .attention import dependency
    from .attention import slots as slot_attention
    from .layer import launch as step
    from .matmul import gpu_linear as quant_linear
    from .rotary import launch as rope_shift

    return Kernels(
        "triton",
        why,
        rope_shift=rope_shift.rope_shift,
        write_rows=rope_shift.write_rows,
        linear=quant_linear.make_linear,
        head=lambda matrix, dtype: quant_linear.make_linear(matrix, None, dtype),
        rms_norm=step.rms_norm,
        add_rms_norm=step.add_rms_norm,
        silu_mul=step.silu_mul,
        fused_linear=step.fused_linear,
        attend_slots=slot_attention.attend_slots,
        record_dependencies=dependency.record_dependencies,
        to_planes=quant_linear.to_planes,
        bit_linear=quant_linear.make_bit_linear,
    )


def _obstacle(device: torch.device, wanted: str) -> str | None:
    """Return what rules Triton out before it is tried."""
    is_interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
    if wanted == "triton" and is_interpreted:
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if device.type != "cuda":
        return f"Triton compiles for CUDA devices, this is {device.type}"
    if is_interpreted:
        return "TRITON_INTERPRET is set, which is slow"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'keyturn[gpu]' makes edits faster"
    return None


def failed_trial(device: torch.device) -> str | None:
    """Turn one key by a right angle; return why that failed.

    Triton needs a C compiler and a writable folder, and a driver as new as itself. Without a trial
    the first keystroke would find out.
    """
    try:
        with torch.inference_mode():
            unrotated = torch.tensor([3.0, 4.0], device=device).view(1, 1, 1, 2)
            rotated, first = torch.zeros_like(unrotated), torch.zeros(1, dtype=torch.int64)
            first = first.to(device)
            cos, sin = torch.zeros(1, 1, device=device), torch.ones(1, 1, device=device)
            _triton("").rope_shift(unrotated, rotated, first, first, cos, sin, False)
            found = rotated.flatten().tolist()
    except Exception as error:  # whatever a compiler, a driver or a file system can raise
        first = next(iter(str(error).strip().splitlines()), "")
        return f"Triton failed here with {type(error).__name__}: {first}"
    return None if found == [-4.0, 3.0] else f"Triton turned (3, 4) to {found}, not to (-4, 3)"
