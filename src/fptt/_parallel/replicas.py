"""Replicas: several processes that train one model, each on its own part of every batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batches.cut import Chunk
from fptt._checks import check_count
from fptt._losses.chunk_loss import ChunkLoss
from fptt._parallel import collectives
from fptt._regularizer.regularizer import DynamicRegularizer


class DataParallel:
    """Train one model in several processes, each on its own part of every batch.

    With `sync_every=1` the gradients are added up at every update,

        g = Σ_r (N_r / Σ_s N_s) g_r,   N_r the samples, or real steps, in the batch of process r,

    so that all processes make the update that one would make on the whole batch: weights, averages W̄ and duals λ are
    the same in all of them, bitwise. With `sync_every=k` each makes k local updates, and then weights, averages and
    duals become their means over the processes: a k-th of the messages, and another path. The regularizer comes from
    there: in FedDyn (Acar et al., ICLR 2021) it holds devices with data of their own together. Moments of the optimizer
    stay with their process.

    The model begins with the weights of process 0. Every process must train on as many batches, cut into as many
    chunks. A `BatchResult` is of the whole batch, and the same in all processes, but for the final state and, with
    local updates, the chunks that were skipped: the number of updates is then that of the process with most, and the
    gradient's norm the mean over the updates of all. NaN or Inf in one process stops all of them; who catches the error
    in all may go on with the next batch, at whose first update the weights are averaged. Buffers of the model, as of
    BatchNorm, become their means after every batch; sparse gradients become dense where they are added up. Use no
    `DistributedDataParallel` around the model: it would average a second time.

    Args:
        group: The processes; None for all of them.
        sync_every: Updates, ≥ 1, between two averagings of the weights; 1 adds up gradients instead.
        check: Compare weights, averages and duals of all processes after every batch that ends in step, for debugging;
            a difference raises a RuntimeError.

    Raises:
        ValueError: If `torch.distributed` is not initialized, or `sync_every` is no positive integer.

    Examples:
        >>> fptt.DataParallel(sync_every=0)
        Traceback (most recent call last):
        ValueError: sync_every must be a positive integer, got 0.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, sync_every: int = 1, check: bool = False) -> None:
        check_count("sync_every", sync_every)
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "group must be one of torch.distributed, or None for all processes: call init_process_group() first."
            )
        self.group, self.sync_every, self.check = group, sync_every, check

    @property
    def adds_gradients(self) -> bool:
        """Whether the processes make every update together."""
        return self.sync_every == 1

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size(self.group)


class OtherProcessError(FloatingPointError):
    """NaN or Inf occurred in another process; raised in all of them."""


class Agreed(NamedTuple):
    """A batch that all replicas learn together.

    Attributes:
        chunks: Those of this process, with what all have agreed on: which are updated, which have bad inputs, and the
            weight of this process.
        num_timesteps: T · B over all processes.
    """

    chunks: list[Chunk]
    num_timesteps: int


class Totals(NamedTuple):
    """What came of a batch: in one process, or in all of them.

    Attributes:
        losses: Of the chunks, (K,).
        norm: Mean norm of the gradient over the updates, a scalar.
        penalty: After the last update, a scalar.
        updates: Updates made, in the process with most.
        skipped: Updates skipped, in the process with most.
    """

    losses: Tensor
    norm: Tensor
    penalty: Tensor
    updates: int
    skipped: int


class Replicas:
    """The processes that train one model: here a single one, which has nothing to exchange.

    Attributes:
        shares_updates: Whether several processes make every update together, on the sum of their gradients.
        num_unsynced: Local updates since the weights were last the same in all.
        needs_steps: Whether a batch of this process must have a real step, since no other process can have one.
        reduce: Adds up a tensor over the processes that share updates; None for a single process.
    """

    reduce: Callable[[Tensor], Tensor] | None = None
    shares_updates = False
    num_unsynced = 0
    needs_steps = True

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report an error in here to the other processes, which wait for this one and cannot detect it."""
        yield

    def agree(self, chunks: list[Chunk], *, allow_empty: bool, num_lanes: int | None = None) -> Agreed:  # noqa: ARG002
        """Return a batch with what all processes must know of it before it is learned."""
        return Agreed(chunks, _num_timesteps(chunks))

    def add_gradients_(self, loss: Tensor, weight: float) -> Tensor:  # noqa: ARG002
        """Replace `param.grad` of each parameter by the sum over all processes, and return the loss of all."""
        return loss

    def count_update(self) -> bool:
        """Count a local update, and return whether it is time to average."""
        return False

    def sync(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes, if there were local updates."""

    def total(self, own: Totals, weight: float) -> Totals:  # noqa: ARG002
        """Return what came of the whole batch, for what came of the part of this process."""
        return own

    def report_failure(self) -> None:
        """Report NaN or Inf that the other processes cannot detect themselves."""


class _Vote(NamedTuple):
    """One process's message about a batch, before it is learned; a row of numbers.

    Attributes:
        error: 0 if all is well, `_BAD_NUMBER`, or `_OTHER_ERROR`.
        num_chunks: K.
        num_counted: Samples or steps in the mean of its loss.
        has_gaps: Whether a chunk has nothing to learn from, or bad inputs.
        num_timesteps: T · B.
    """

    error: float
    num_chunks: float = 0.0
    num_counted: float = 0.0
    has_gaps: float = 0.0
    num_timesteps: float = 0.0


_BAD_NUMBER, _OTHER_ERROR = 1.0, 2.0


class DistributedReplicas(Replicas):
    """Several processes of `torch.distributed`; see `DataParallel`.

    Args:
        parallel: The processes.
        model: The model, which gets the weights and buffers of process 0.
        loss: Its loss, whose running estimates are shared.
        optimizer: The optimizer over the model's parameters.
        regularizer: The regularizer, if there is one.
    """

    needs_steps = False

    def __init__(
        self,
        parallel: DataParallel,
        model: nn.Module,
        loss: ChunkLoss,
        optimizer: Optimizer,
        regularizer: DynamicRegularizer | None,
    ) -> None:
        self.parallel, self.group, self.shares_updates = parallel, parallel.group, parallel.adds_gradients
        self.model, self.loss, self.regularizer = model, loss, regularizer
        self.optimizer, self.device = optimizer, optimizer.param_groups[0]["params"][0].device
        tensors = [tensor for part in (model, loss) for tensor in (*part.parameters(), *part.buffers())]
        tensors = list(dict.fromkeys([*self._params(), *tensors]))
        size = torch.tensor([sum(tensor.numel() for tensor in tensors)], device=self.device)
        sizes = collectives.gather(size, self.group).flatten().tolist()
        if len(set(sizes)) > 1:
            raise ValueError(f"model must be the same in all processes, got {sizes} numbers in them.")
        collectives.broadcast_([tensor.detach() for tensor in tensors], self.group)
        if self.shares_updates:
            self.reduce = self._sum

    def _params(self) -> list[Tensor]:
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def _sum(self, tensor: Tensor) -> Tensor:
        return collectives.total(tensor, self.group)

    # -- before a batch ----------------------------------------------------------------------------------------------

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report an error in here, as this process's vote about the batch."""
        try:
            yield
        except Exception as error:
            self._exchange(_Vote(_BAD_NUMBER if isinstance(error, FloatingPointError) else _OTHER_ERROR))
            raise

    def agree(self, chunks: list[Chunk], *, allow_empty: bool, num_lanes: int | None = None) -> Agreed:
        """Exchange votes: where updates are shared, all make them in the same chunks.

        Args:
            chunks: Of this process's part of the batch.
            allow_empty: Whether the batch may have nothing that counts.
            num_lanes: B, if the lanes are staggered: the mean is then over them, idle ones included.

        Raises:
            RuntimeError: If another process cannot learn its batch.
            OtherProcessError: If that is because of NaN or Inf.
            ValueError: If the others have another number of chunks, or nothing counts in any.
        """
        has_steps = [chunk.has_steps for chunk in chunks]
        are_bad = [chunk.bad_inputs is not None for chunk in chunks]
        with self.reporting():  # a loss of the user's own may not know
            num_counted = num_lanes or 0.0
            if num_lanes is None and any(has_steps):
                num_counted = self.loss.num_counted([chunk.part for chunk in chunks])
        has_gaps = any(are_bad) or not all(has_steps)
        votes = self._exchange(_Vote(0.0, len(chunks), num_counted, has_gaps, _num_timesteps(chunks)))
        errors, num_chunks, all_counted, have_gaps, num_timesteps = votes.unbind(1)
        if errors.any():
            number = int(errors.argmax())
            kind = RuntimeError if errors[number] == _OTHER_ERROR else OtherProcessError
            raise kind(f"process {number} cannot learn its batch; its own error says why.")
        if (num_chunks != num_chunks[0]).any():
            found = num_chunks.long().tolist()
            raise ValueError(f"inputs must be cut into as many chunks in every process, got {found} of them.")
        if not allow_empty and not all_counted.any():
            raise ValueError("mask must have at least one real step in one of the processes, got none.")
        weight = num_counted / (all_counted.sum().item() or 1.0)  # a step of several targets may count a part of 1
        if self.shares_updates and have_gaps.any():
            # a second message only where it is needed: an update that any process makes is made by all
            flags = torch.tensor([has_steps, are_bad], dtype=torch.float64, device=self.device)
            has_steps, are_bad = (self._sum(flags) > 0).tolist()
        agreed = [
            chunk._replace(
                has_steps=counts, bad_inputs=(chunk.bad_inputs or "inputs") if is_bad else None, weight=weight
            )
            for chunk, counts, is_bad in zip(chunks, has_steps, are_bad, strict=True)
        ]
        return Agreed(agreed, int(num_timesteps.sum()))

    def _exchange(self, vote: _Vote) -> Tensor:
        """Return the votes of all processes, a row each."""
        return collectives.gather(torch.tensor(vote, dtype=torch.float64, device=self.device), self.group).cpu()

    # -- shared updates ----------------------------------------------------------------------------------------------

    def add_gradients_(self, loss: Tensor, weight: float) -> Tensor:
        """Replace every gradient, of the weighted loss, by the sum over all processes, and return the loss of all.

        A parameter that has no gradient here has one afterwards, if it has one elsewhere; a sparse one becomes dense.
        """
        if not self.shares_updates:
            return loss
        params = self._params()
        own = {param: param.grad.to_dense() for param in params if param.grad is not None}
        gradients, total, _ = self._add(own, loss, weight)
        for param in params:
            param.grad = gradients.get(param)
        return total

    def add_(self, gradients: dict[Tensor, Tensor], loss: Tensor, weight: float) -> Tensor:
        """Weigh gradients and add them up in place, by parameter, and return the loss of all.

        Raises:
            ValueError: If not the same parameters have a gradient in all processes.
        """
        torch._foreach_mul_(list(gradients.values()), weight)
        _, total, is_alike = self._add(gradients, loss, weight)
        if not is_alike:
            raise ValueError(
                "model must use the same parameters in all processes with engine='compiled': use engine='eager'."
            )
        return total

    @torch.no_grad()
    def _add(self, own: dict[Tensor, Tensor], loss: Tensor, weight: float) -> tuple[dict[Tensor, Tensor], Tensor, bool]:
        """Add up gradients of the weighted loss, in place, and the weighted loss itself.

        Returns:
            The gradients that any process has, the loss of all, and whether all have those of the same parameters.
        """
        params, loss = self._params(), (loss * weight).clone()
        # in one message, with zeros for what is missing here: processes must not wait for different parameters
        gradients = [own[param] if param in own else torch.zeros_like(param) for param in params]
        is_there = loss.new_tensor([param in own for param in params])
        collectives.sum_([*gradients, is_there, loss], self.group)
        counts = is_there.tolist()  # one synchronization
        found = {param: grad for param, grad, count in zip(params, gradients, counts, strict=True) if count}
        return found, loss, all(count in (0, self.parallel.size) for count in counts)

    # -- local updates -----------------------------------------------------------------------------------------------

    def count_update(self) -> bool:
        """Count a local update, and return whether it is the last one before an averaging."""
        if self.shares_updates:
            return False
        self.num_unsynced += 1
        return self.num_unsynced == self.parallel.sync_every

    def sync(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means, if there were local updates since they were the same.

        Raises:
            OtherProcessError: If another process has met NaN or Inf.
        """
        if self.num_unsynced:
            self._confirm()
            collectives.average_(tensors, self.group)
            self.num_unsynced = 0

    def _confirm(self, updates: int = 0, skipped: int = 0, *, is_well: bool = True) -> Tensor:
        """Exchange whether the processes are well, and return the updates and skipped chunks of each, (size, 2).

        Raises:
            OtherProcessError: If a process is not well.
        """
        own = torch.tensor([is_well, updates, skipped], dtype=torch.float64, device=self.device)
        rows = collectives.gather(own, self.group)
        are_well = rows[:, 0]
        if not are_well.all():
            # the others have made more updates since the last averaging: all count alike again, so that who goes on
            # with the next batch averages at its first update
            self.num_unsynced = self.parallel.sync_every - 1
            number = int(are_well.argmin())
            raise OtherProcessError(f"process {number} has met NaN or Inf; its own error says where.")
        return rows[:, 1:]

    def report_failure(self) -> None:
        """Take part in the next exchange of the others, as the process that is not well.

        With shared updates they have seen the same NaN or Inf at the same update.
        """
        if not self.shares_updates:
            with suppress(OtherProcessError):
                self._confirm(is_well=False)

    # -- after a batch -----------------------------------------------------------------------------------------------

    def total(self, own: Totals, weight: float) -> Totals:
        """Return what came of the whole batch, the same in all processes; also average the buffers of the model.

        Raises:
            OtherProcessError: If another process has met NaN or Inf.
            RuntimeError: If the processes are compared, and have drifted apart.
        """
        size, updates, skipped = self.parallel.size, own.updates, own.skipped
        share, shares = 1.0, float(size)
        if not self.shares_updates:
            # each process has made updates of its own, as many as it has chunks with real steps
            numbers = self._confirm(updates, skipped)
            share, shares = float(updates), max(float(numbers[:, 0].sum()), 1.0)
            updates, skipped = (int(number) for number in numbers.amax(0))
        norm, penalty = (scalar.reshape(1).to(own.losses) for scalar in (own.norm, own.penalty))
        losses, (norm, penalty) = self._sum(
            torch.cat([own.losses * weight, norm * share / shares, penalty / size])
        ).split([len(own.losses), 2])
        collectives.average_([own for own in self.model.buffers() if own.is_floating_point()], self.group)
        if self.parallel.check and not self.num_unsynced:
            self._compare()
        return Totals(losses, norm, penalty, updates, skipped)

    def _compare(self) -> None:
        memory = {} if self.regularizer is None else self.regularizer.named_tensors()
        named = {**dict(self.model.named_parameters()), **memory}
        found = collectives.gather(collectives.fingerprints(list(named.values())), self.group)
        apart = [name for name, column in zip(named, found.T, strict=True) if (column != column[0]).any()]
        if apart:
            raise RuntimeError(f"the processes have drifted apart in {', '.join(apart)}.")


def _num_timesteps(chunks: list[Chunk]) -> int:
    return sum(chunk.inputs.shape[0] * chunk.inputs.shape[1] for chunk in chunks)
