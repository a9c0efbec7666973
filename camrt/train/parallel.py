"""Several processes that train one network, each on its part of a batch, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from camrt.errors import CamrtError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes:
        rank: The number of this one. The first one writes the files.
        world: How many there are.
        local_rank: The number of this one on its machine: that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in place of each tensor."""
        if self.world == 1 or not tensors:
            return
        with torch.no_grad():
            for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
                same = [tensor for tensor in tensors if tensor.dtype == dtype]
                flat = torch.cat([tensor.reshape(-1) for tensor in same])
                distributed.all_reduce(flat)
                flat /= self.world
                parts = flat.split([tensor.numel() for tensor in same])
                for tensor, part in zip(same, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers. Waits for all of them; the device does not."""
        if self.world == 1:
            return number
        tensor = torch.tensor(number)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    def of_first(self, value: T) -> T:
        """What the first process has; the others' value is not looked at."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """What each process has, the first one's first."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]


def join(environment: Mapping[str, str] = os.environ) -> Group:
    """Join the other processes that `torchrun` started; alone, where it did not.

    Args:
        environment: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, and what PyTorch itself reads.

    Raises:
        CamrtError: The others cannot be reached.
    """
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        return Group()
    # CPU tensors too: what the processes agree on must not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise CamrtError(f"the processes of torchrun cannot reach each other: {error}") from error
    local_rank = int(environment.get("LOCAL_RANK", environment["RANK"]))
    return Group(distributed.get_rank(), distributed.get_world_size(), local_rank)


def leave() -> None:
    """Leave the other processes."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def choose_device(name: str | None, group: Group, number: int = 0) -> torch.device:
    """The device to train on.

    Args:
        name: As PyTorch calls it: ``cpu``, ``cuda``, ``cuda:1``, ``mps``. None for a GPU where there is one.
        group: With several processes on a machine each has a GPU of its own.
        number: The GPU that the solver's file names.

    Raises:
        CamrtError: There is no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", group.local_rank if group.world > 1 else number)
        torch.empty(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CamrtError(f"found the device {name!r}, which PyTorch cannot use: {reason}") from None
    return device


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is NaN or infinite. Waits for the device."""
    found = [tensor.detach().isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not found or bool(torch.stack(found).all())
