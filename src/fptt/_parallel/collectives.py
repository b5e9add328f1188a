"""Messages between processes: sums, means and copies of tensors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None


class LostProcessError(RuntimeError):
    """Another process that trains the model has ended, or cannot be reached."""


@contextmanager
def reporting_lost_processes() -> Iterator[None]:
    """Raise LostProcessError, in one line, when a message does not arrive."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise LostProcessError(f"another process has ended, or cannot be reached ({reason}).") from error


def total(tensor: Tensor, group: Group) -> Tensor:
    """Return the sum of the tensors of all processes."""
    tensor = tensor.detach().clone()
    with reporting_lost_processes():
        dist.all_reduce(tensor, group=group)
    return tensor


def gather(tensor: Tensor, group: Group) -> Tensor:
    """Return the tensors of all processes, one row each."""
    rows = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    with reporting_lost_processes():
        dist.all_gather(rows, tensor, group=group)
    return torch.stack(rows)


@torch.no_grad()
def sum_(tensors: Sequence[Tensor], group: Group) -> None:
    """Put the sum over all processes into each tensor, in place: one message for each dtype and device."""
    for alike in _alike(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        with reporting_lost_processes():
            dist.all_reduce(flat, group=group)
        _scatter(flat, alike)


def average_(tensors: Sequence[Tensor], group: Group) -> None:
    """Put the mean over all processes into each tensor, in place."""
    sum_(tensors, group)
    if tensors:
        torch._foreach_div_(list(tensors), dist.get_world_size(group))


@torch.no_grad()
def broadcast_(tensors: Sequence[Tensor], group: Group) -> None:
    """Give every process the tensors of the first one, in place."""
    first = dist.get_global_rank(group, 0) if group is not None else 0
    for alike in _alike(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        with reporting_lost_processes():
            dist.broadcast(flat.view(torch.uint8), first, group=group)  # not every backend sends every dtype
        _scatter(flat, alike)


def fingerprints(tensors: Sequence[Tensor]) -> Tensor:
    """Return a number for the bits of each tensor, (N,)."""
    return torch.stack([_fingerprint(tensor.detach()) for tensor in tensors])


def _fingerprint(tensor: Tensor) -> Tensor:
    bits = tensor.contiguous().reshape(-1).view(torch.uint8).to(torch.int64)
    return (bits * (torch.arange(len(bits), device=bits.device) % 65_521 + 1)).sum()


def _alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors by dtype and device, in an order that is the same in every process."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(kinds.values())


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
