"""What a method says to the other processes that train its model: nothing where it is alone."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batches.cut import Chunk
from fptt._losses.chunk_loss import ChunkLoss
from fptt._losses.priors import RunningPrior
from fptt._parallel import collectives
from fptt._parallel.data_parallel import DataParallel
from fptt._parallel.reports import ANYTHING, BAD_NUMBERS, NOTHING, OtherProcessError, Report, check_reports
from fptt._regularizer.regularizer import DynamicRegularizer


class Alone:
    """One process, whose batch is the whole batch.

    Attributes:
        adds_gradients: Whether several processes make every update together.
        weight: Of the loss of this process in that of all.
        num_unsynced: Updates since the weights were last the same in all.
        num_timesteps: T · B of the whole batch under way.
    """

    adds_gradients = False
    weight = 1.0
    num_unsynced = 0
    num_timesteps = 0

    def agree(self, cut: Callable[..., list[Chunk]], *, allow_empty: bool) -> list[Chunk]:
        """Return the chunks that `cut` gives; it is told whether a batch without a real step will do."""
        chunks = cut(allow_empty=allow_empty)
        self.num_timesteps = _num_timesteps(chunks)
        return chunks

    def weigh(self, loss: Tensor) -> Tensor:
        """Return what to take the gradient of."""
        return loss

    def add_gradients_(self, loss: Tensor) -> Tensor:
        """Add up the gradients of all, in place, and return the loss of all."""
        return loss

    def share_(self, gradients: dict[Tensor, Tensor], loss: Tensor) -> Tensor:  # noqa: ARG002
        """Put the sums over all processes in the place of gradients, by parameter, and return the loss of all."""
        return loss

    def after_chunk(self, tensors: Callable[[], Sequence[Tensor]] | None = None) -> None:
        """Make what is trained the same in all processes, if it is time."""

    def sync(self, tensors: Callable[[], Sequence[Tensor]] | None = None) -> None:
        """Make what is trained the same in all processes now."""

    def total(self, losses: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Return the losses of the whole batch, (K,), and other scalars."""
        return losses, *others

    def tell(self, error: FloatingPointError) -> None:
        """Let the others know that this process cannot go on."""


class Together(Alone):
    """Several processes; see `DataParallel`.

    Args:
        parallel: The processes.
        model: What is trained.
        loss: Its loss, whose running estimates are shared.
        optimizer: Over the model's parameters.
        regularizer: If there is one.
    """

    def __init__(
        self,
        parallel: DataParallel,
        model: nn.Module,
        loss: ChunkLoss,
        optimizer: Optimizer,
        regularizer: DynamicRegularizer | None,
    ) -> None:
        self.parallel, self.group, self.adds_gradients = parallel, parallel.group, parallel.adds_gradients
        self.model, self.loss, self.optimizer, self.regularizer = model, loss, optimizer, regularizer
        self.device = self._params()[0].device
        self._begin()
        if self.adds_gradients and any(isinstance(module, RunningPrior) for module in loss.modules()):
            loss.observe = partial(type(loss).observe, loss, reduce=self._sum)

    def _begin(self) -> None:
        """Give all processes the weights and buffers of process 0."""
        tensors = [tensor for part in (self.model, self.loss) for tensor in (*part.parameters(), *part.buffers())]
        tensors = list(dict.fromkeys([*self._params(), *tensors]))
        size = torch.tensor([sum(tensor.numel() for tensor in tensors)], device=self.device)
        sizes = collectives.gather(size, self.group).flatten().tolist()
        if len(set(sizes)) > 1:
            raise ValueError(f"model must be the same in all processes, got {sizes} numbers in them.")
        collectives.broadcast_([tensor.detach() for tensor in tensors], self.group)

    def _params(self) -> list[Tensor]:
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def _sum(self, tensor: Tensor) -> Tensor:
        return collectives.total(tensor, self.group)

    # -- before a batch ----------------------------------------------------------------------------------------------

    def agree(self, cut: Callable[..., list[Chunk]], *, allow_empty: bool) -> list[Chunk]:
        """Return the chunks of this process; where updates are made together, all know in which chunks.

        Raises:
            RuntimeError: If another process cannot learn its batch.
            OtherProcessError: If that is because of NaN or Inf.
            ValueError: If the others have another number of chunks, or nothing counts in any.
        """
        try:
            chunks = cut(allow_empty=True)
            has_steps = [chunk.has_steps for chunk in chunks]
            num_counted = self.loss.num_counted([chunk.part for chunk in chunks]) if any(has_steps) else 0.0
        except Exception as error:
            self._exchange(Report(BAD_NUMBERS if isinstance(error, FloatingPointError) else ANYTHING))
            raise
        are_bad = [chunk.has_bad_inputs for chunk in chunks]
        has_gaps = any(are_bad) or not all(has_steps)
        reports = self._exchange(Report(NOTHING, len(chunks), num_counted, has_gaps, _num_timesteps(chunks)))
        check_reports(reports, allow_empty=allow_empty)
        self.num_timesteps = int(reports[:, 4].sum())
        self.weight = num_counted / max(float(reports[:, 2].sum()), 1.0)
        if self.adds_gradients and reports[:, 3].any():
            flags = torch.tensor([has_steps, are_bad], dtype=torch.float64, device=self.device)
            has_steps, are_bad = (self._sum(flags) > 0).tolist()
        found = zip(chunks, has_steps, are_bad, strict=True)
        return [chunk._replace(has_steps=counts, has_bad_inputs=is_bad) for chunk, counts, is_bad in found]

    def _exchange(self, report: Report) -> Tensor:
        """Return the reports of all processes, a row each."""
        return collectives.gather(torch.tensor(report, dtype=torch.float64, device=self.device), self.group).cpu()

    # -- updates that are made together ------------------------------------------------------------------------------

    def weigh(self, loss: Tensor) -> Tensor:
        """Return the loss of this process as its part of the loss of all, where updates are made together."""
        return loss * self.weight if self.adds_gradients else loss

    def add_gradients_(self, loss: Tensor) -> Tensor:
        """Put the sum of all gradients in the place of one's own, and return the loss of all.

        A parameter that has no gradient here has one afterwards, if it has one elsewhere.
        """
        if not self.adds_gradients:
            return loss
        params = self._params()
        gradients, total, _ = self._add({param: param.grad for param in params if param.grad is not None}, loss)
        for param in params:
            param.grad = gradients.get(param)
        return total

    def share_(self, gradients: dict[Tensor, Tensor], loss: Tensor) -> Tensor:
        """Put the sums over all processes in the place of gradients, by parameter, and return the loss of all.

        Raises:
            ValueError: If not the same parameters have a gradient in all processes.
        """
        torch._foreach_mul_(list(gradients.values()), self.weight)
        _, total, is_alike = self._add(gradients, loss)
        if not is_alike:
            raise ValueError(
                "model must use the same parameters in all processes with engine='compiled': use engine='eager'."
            )
        return total

    @torch.no_grad()
    def _add(self, own: dict[Tensor, Tensor], loss: Tensor) -> tuple[dict[Tensor, Tensor], Tensor, bool]:
        """Add up gradients of the weighed loss, in place.

        Returns:
            The gradients that any process has, the loss of all, and whether all have those of the same parameters.
        """
        params, loss = self._params(), self.weigh(loss).clone()
        gradients = [own[param] if param in own else torch.zeros_like(param) for param in params]
        is_there = loss.new_tensor([param in own for param in params])
        collectives.sum_([*gradients, is_there, loss], self.group)
        counts = is_there.tolist()  # one synchronization
        found = {param: gradient for param, gradient, count in zip(params, gradients, counts, strict=True) if count}
        return found, loss, all(count in (0, self.parallel.size) for count in counts)

    # -- updates of one's own ----------------------------------------------------------------------------------------

    def after_chunk(self, tensors: Callable[[], Sequence[Tensor]] | None = None) -> None:
        """Count an update, and synchronize if it is time."""
        if not self.adds_gradients:
            self.num_unsynced += 1
            if self.num_unsynced == self.parallel.sync_every:
                self.sync(tensors)

    def sync(self, tensors: Callable[[], Sequence[Tensor]] | None = None) -> None:
        """Put the means of weights, averages and duals, or other `tensors`, in their place, if they are not the same.

        Raises:
            OtherProcessError: If another process is not well.
        """
        if self.num_unsynced:
            own = (tensors or self._trained)()
            self._confirm()
            collectives.average_(own, self.group)
            self.num_unsynced = 0

    def _confirm(self, *, is_well: bool = True) -> None:
        """Tell the others whether this process is well, and hear whether they are."""
        flags = collectives.gather(torch.tensor([float(is_well)], device=self.device), self.group).flatten()
        if not flags.all():
            number = int((flags == 0).nonzero()[0])
            raise OtherProcessError(f"process {number} has met NaN or Inf; its own error says where.")

    @torch.no_grad()
    def _trained(self) -> list[Tensor]:
        memory = [] if self.regularizer is None else self._memory(self.regularizer)
        return [*(param.detach() for param in self._params()), *memory, *_floating(self.loss.buffers())]

    def _memory(self, regularizer: DynamicRegularizer) -> list[Tensor]:
        """Return all averages and duals; those that have not begun here may have done so elsewhere."""
        groups = [group for group in regularizer.param_groups if group["fptt_alpha"] is not None]
        regularizer.begin(param for group in groups for param in group["params"] if param.requires_grad)
        return list(regularizer.named_tensors().values())

    def tell(self, error: FloatingPointError) -> None:
        """Let the others know that this process cannot go on, where they do not see it at the same update."""
        if not self.adds_gradients and not isinstance(error, OtherProcessError):
            with suppress(OtherProcessError):
                self._confirm(is_well=False)

    # -- after a batch -----------------------------------------------------------------------------------------------

    def total(self, losses: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Return the losses of the whole batch, (K,), and means of scalars; also share the buffers of the model.

        Raises:
            OtherProcessError: If another process is not well.
            RuntimeError: If the processes are compared, and have drifted apart.
        """
        if not self.adds_gradients:
            self._confirm()
        own = torch.cat([losses * self.weight, *(other.reshape(1).to(losses) / self.parallel.size for other in others)])
        whole, *means = self._sum(own).split([len(losses), *(1 for _ in others)])
        collectives.average_(_floating(self.model.buffers()), self.group)
        if self.parallel.check and not self.num_unsynced:
            self._compare()
        return whole, *(mean[0] for mean in means)

    def _compare(self) -> None:
        memory = {} if self.regularizer is None else self.regularizer.named_tensors()
        named = {**dict(self.model.named_parameters()), **memory}
        found = collectives.gather(collectives.fingerprints(list(named.values())), self.group)
        apart = [name for name, column in zip(named, found.T, strict=True) if (column != column[0]).any()]
        if apart:
            raise RuntimeError(f"the processes have drifted apart in {', '.join(apart)}.")


def _num_timesteps(chunks: list[Chunk]) -> int:
    return sum(chunk.inputs.shape[0] * chunk.inputs.shape[1] for chunk in chunks)


def _floating(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.is_floating_point()]
