"""NaN and Inf: where they were met, the error they raise, and a snapshot to undo the chunk that they spoiled."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._checks import first_weight
from fptt._random_state import RandomState
from fptt._regularizer.regularizer import DynamicRegularizer
from fptt._regularizer.step_hooks import BadWeightsError, StepHooks

OnBadNumber = Literal["raise", "skip"]


class BadNumber(NamedTuple):
    """NaN or Inf in a chunk.

    Attributes:
        chunk: Number of the chunk in its batch, from 0.
        where: In the inputs (`padding`: only in those that the mask leaves out), the loss or the gradient, before the
            update was made; or after it, in the weights or in the recomputed gradient.
        loss: The loss, if that is what is not finite.
    """

    chunk: int
    where: Literal["inputs", "padding", "loss", "gradient", "weights", "recomputed gradient"]
    loss: float = 0.0

    def error(self, batch: int, *, is_undone: bool = False) -> FloatingPointError:
        """Return the error that names batch, chunk and what has become of the weights.

        Args:
            batch: Number of the batch, from 0.
            is_undone: Whether the chunk is skipped, so that an update that was made is undone.
        """
        place = f"chunk {self.chunk} of batch {batch}"
        if self.where == "weights":  # the one that cannot be undone without a snapshot
            return BadWeightsError(f"the weights are NaN or Inf after the update of {place}: go back to a checkpoint.")
        if self.where == "recomputed gradient":
            outcome = "the update is undone." if is_undone else "averages and duals start again."
            return FloatingPointError(f"the recomputed gradient is NaN or Inf after the update of {place}; {outcome}")
        if self.where == "inputs":
            return FloatingPointError(f"inputs hold NaN or Inf in {place}; no weight was changed.")
        if self.where == "padding":
            # the model still runs over the padding, and zero times NaN is NaN in the gradient
            return FloatingPointError(
                f"inputs hold NaN or Inf in {place}, in the padding, where mask is False: pad with zeros instead; "
                "no weight was changed."
            )
        what = "the gradient is NaN or Inf" if self.where == "gradient" else f"the loss is {self.loss}"
        return FloatingPointError(f"{what} in {place}; the weights are as before that chunk.")


class Snapshot:
    """Copies of everything that an update changes, random number generators included.

    Args:
        modules: Model and loss, with their parameters and buffers.
        optimizer: The optimizer: its parameters, and what it keeps in `state` and `param_groups`, in any nest of
            dicts, lists, deques and tuples. Attributes of its own are left alone.
        regularizer: The regularizer, with averages and duals.
        hooks: The step hooks, with the count of updates.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        optimizer: Optimizer,
        regularizer: DynamicRegularizer | None,
        hooks: StepHooks,
    ) -> None:
        self.regularizer, self.hooks, self.num_steps = regularizer, hooks, hooks.num_steps
        self.copies: dict[Tensor, Tensor] = {}
        self.items: dict[int, tuple[Any, tuple[Any, ...]]] = {}  # of each dict, list and deque
        with torch.no_grad():  # parameters are leaves: their clones must not be in a graph
            for module in modules:
                self._copy(tuple(module.parameters()))
                # which tensors are the buffers: a model may assign new ones instead of writing into them
                self._copy(tuple(part._buffers for part in module.modules()))
            self._copy(optimizer.state)
            self._copy(optimizer.param_groups)
            if regularizer is not None:
                self._copy(regularizer.state)
        self.random = RandomState.capture({tensor.device for tensor in self.copies})

    def _copy(self, nest: Any) -> None:
        """Copy the tensors of a nest, and which they are: an optimizer may append, take out and replace some."""
        if isinstance(nest, Tensor):
            if nest not in self.copies:
                self.copies[nest] = _once(nest).clone()
        elif isinstance(nest, tuple):
            for part in nest:
                self._copy(part)
        elif isinstance(nest, dict | list | deque) and id(nest) not in self.items:
            items = tuple(nest.items() if isinstance(nest, dict) else nest)
            self.items[id(nest)] = nest, items
            self._copy(items)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back in place: whoever holds a tensor sees its old values."""
        for container, items in self.items.values():
            container.clear()
            container.update(items) if isinstance(container, dict) else container.extend(items)
        for tensor, copied in self.copies.items():
            _once(tensor).copy_(copied)
        if self.regularizer is not None:
            self.regularizer.forget_step()
        self.hooks.num_steps = self.num_steps
        self.random.restore()


def bad_loss(model: nn.Module) -> Tensor:
    """Return NaN, the loss of a chunk that was skipped, a scalar like the model's weights: real, and no integer."""
    weight = first_weight(model)
    return weight.new_full((), float("nan"), dtype=weight.dtype.to_real())


def _once(tensor: Tensor) -> Tensor:
    """Return a view of a tensor without what `expand` repeats, which torch refuses to write into."""
    if tensor.layout == torch.strided:
        for dim, stride in enumerate(tensor.stride()):
            tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim])) if stride == 0 else tensor
    return tensor
