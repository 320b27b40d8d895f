"""The matmuls that ours is measured against: cuBLAS in bf16, torch's 4-bit kernel, gemlite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NAMES = ("bf16", "int4pack", "gemlite")
GROUP = 32
# Past every second-level cache.
_ROTATED_BYTES = 128 << 20
_MAX_COPIES = 128

Rival = tuple[list[Any], Callable[[Tensor, Any], object]]


def num_copies(num_bytes: int, is_tiny: bool) -> int:
    """Return how many copies of a weight are together more than a cache holds."""
    return 2 if is_tiny else max(2, min(_MAX_COPIES, -(-_ROTATED_BYTES // num_bytes)))


def build(
    num_out: int, num_in: int, device: torch.device, is_tiny: bool, names: tuple[str, ...]
) -> dict[str, Rival]:
    """Return weights and call of each of these rivals that is here and takes this shape."""
    rivals: dict[str, Rival] = {}
    makers = {"bf16": _bf16, "int4pack": _int4pack, "gemlite": _gemlite}
    for name in names:
        maker = makers[name]
        packed_bytes = num_out * num_in * 2 if name == "bf16" else num_out * num_in // 2
        count = num_copies(packed_bytes, is_tiny)
        try:
            call = maker(num_out, num_in, device)
            rivals[name] = [call[0]() for _ in range(count)], call[1]
        except ImportError:
            pass  # gemlite is not a dependency
        except Exception as error:  # whatever a rival says of a shape or a device
            print(
                f"{name} {num_out}x{num_in}: {type(error).__name__}: {str(error).splitlines()[:1]}"
            )
    return rivals


def _bf16(num_out: int, num_in: int, device: torch.device) -> tuple[Callable[[], Any], Any]:
    def make() -> Tensor:
        return torch.randn(num_out, num_in, dtype=torch.bfloat16, device=device)

    return make, functional.linear


def _int4pack(num_out: int, num_in: int, device: torch.device) -> tuple[Callable[[], Any], Any]:
    if device.type != "cuda":
        raise ImportError  # the CPU has another op, which is not what is compared here

    def make() -> tuple[Tensor, Tensor]:
        codes = torch.randint(0, 256, (num_out, num_in // 2), device=device).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        scales = torch.rand(num_in // GROUP, num_out, 2, device=device).bfloat16() * 0.01
        return packed, scales

    def call(x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm(x, weight[0], GROUP, weight[1])

    return make, call


def _gemlite(num_out: int, num_in: int, device: torch.device) -> tuple[Callable[[], Any], Any]:
    from gemlite.core import DType, GemLiteLinearTriton  # pyright: ignore[reportMissingImports]

    def make() -> Any:  # noqa: ANN401
        layer = GemLiteLinearTriton(
            W_nbits=4,
            group_size=GROUP,
            in_features=num_in,
            out_features=num_out,
            input_dtype=DType.BF16,
            output_dtype=DType.BF16,
        )
        codes = torch.randint(0, 16, (num_out, num_in), device=device).to(torch.uint8)
        num_groups = num_out * num_in // GROUP
        scales = torch.rand(num_groups, 1, device=device).bfloat16() * 0.01
        layer.pack(codes, scales, torch.full_like(scales, 8), None)
        return layer

    return make, lambda x, layer: layer(x)
