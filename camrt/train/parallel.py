"""Data-parallel training by the processes that `torchrun` starts."""

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
        rank: The number of this process. Process 0 writes the files.
        world: The number of processes.
        local_rank: The number of this process on its machine, which is also the number of its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
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

    def maximum(self, number: int) -> int:
        """Return the largest number of all processes. Waits for the processes, but not for the device."""
        if self.world == 1:
            return number
        tensor = torch.tensor(number)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    def broadcast(self, value: T) -> T:
        """Return the value of the first process. The values of the others are ignored."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]


def join(environment: Mapping[str, str] = os.environ) -> Group:
    """Join the process group that `torchrun` started.

    Args:
        environment: The environment variables: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, and those that PyTorch reads.

    Returns:
        The group; a group of one if the process was not started by `torchrun`.

    Raises:
        CamrtError: The processes cannot reach each other.
    """
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        return Group()
    # gloo for CPU tensors: the exchange of signals must not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise CamrtError(f"the processes of torchrun cannot reach each other: {error}") from error
    local_rank = int(environment.get("LOCAL_RANK", environment["RANK"]))
    return Group(distributed.get_rank(), distributed.get_world_size(), local_rank)


def leave() -> None:
    """Leave the process group."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def choose_device(name: str | None, group: Group, number: int = 0) -> torch.device:
    """Return the device to train on.

    Args:
        name: The device, by PyTorch's name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``. By default, a GPU if one is
            available.
        group: The processes. If there are several, each uses its own GPU.
        number: The number of the GPU in the solver file.

    Raises:
        CamrtError: PyTorch cannot use the device.
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
    """Return whether all values are finite. Waits for the device."""
    found = [tensor.detach().isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not found or bool(torch.stack(found).all())
