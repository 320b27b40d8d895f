"""The processes of one run, one per GPU, as torchrun starts them; alone without it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number.
        world: how many there are.
        device: its GPU, or the CPU.
        group: for small figures over the CPU; None if it is alone.
    """

    rank: int
    world: int
    device: torch.device
    group: dist.ProcessGroup | None

    @classmethod
    def start(cls) -> Processes:
        """Join the run that the environment describes."""
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda, device, group = torch.cuda.is_available(), torch.device("cpu"), None
        if cuda:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        if world > 1:
            backend = "nccl" if cuda else "gloo"
            dist.init_process_group(backend, device_id=device if cuda else None)
            made = dist.new_group(backend="gloo")
            group = made if isinstance(made, dist.ProcessGroup) else None
        return cls(rank, world, device, group)

    @property
    def cuda(self) -> bool:
        """Whether it has a GPU."""
        return self.device.type == "cuda"

    def first(self, values: Sequence[float]) -> list[float]:
        """Return the first process's values, on all of them."""
        shared = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(shared, 0, group=self.group)
        return shared.tolist()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes of a tensor on the CPU."""
        if self.world > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def synchronise(self) -> None:
        """Wait for the GPU."""
        if self.cuda:
            torch.cuda.synchronize()

    def close(self) -> None:
        """Leave the run together."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()
