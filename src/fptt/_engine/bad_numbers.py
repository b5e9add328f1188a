"""What is done about NaN and Inf: stop, or put everything back as it was before the chunk and go on."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._regularizer.regularizer import DynamicRegularizer
from fptt._regularizer.step_hooks import StepHooks

OnBadNumber = Literal["raise", "skip"]

LOGGER = logging.getLogger("fptt")

Learned = TypeVar("Learned")


class Snapshot:
    """Copies of all that learning a chunk changes, torch's random numbers among it.

    Args:
        modules: Model and loss: their parameters and buffers.
        optimizer: Its parameters and state.
        regularizer: Averages and duals.
        hooks: Their count of steps.
    """

    def __init__(
        self,
        modules: tuple[nn.Module, ...],
        optimizer: Optimizer,
        regularizer: DynamicRegularizer | None,
        hooks: StepHooks,
    ) -> None:
        self.optimizer, self.regularizer, self.hooks = optimizer, regularizer, hooks
        own = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self.tensors = list(dict.fromkeys([*own, *(p for group in optimizer.param_groups for p in group["params"])]))
        self.num_steps = hooks.num_steps
        self.random = torch.get_rng_state()
        self.random_on = {device: torch.cuda.get_rng_state(device) for device in _cuda_devices(self.tensors)}
        with torch.no_grad():
            self.copies = [tensor.clone() for tensor in self.tensors]
            self.moments = {param: _copied(state) for param, state in optimizer.state.items()}
            self.memory = {} if regularizer is None else {p: _copied(e._asdict()) for p, e in regularizer.state.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; tensors stay the ones that they are."""
        for tensor, copy in zip(self.tensors, self.copies, strict=True):
            tensor.copy_(copy)
        for param in list(self.optimizer.state):
            if param in self.moments:
                _put_back(self.optimizer.state[param], self.moments[param])
            else:
                del self.optimizer.state[param]
        if self.regularizer is not None:
            self.regularizer.restore(self.memory)
        self.hooks.num_steps = self.num_steps
        torch.set_rng_state(self.random)
        for device, state in self.random_on.items():
            torch.cuda.set_rng_state(state, device)


def _cuda_devices(tensors: list[Tensor]) -> set[torch.device]:
    return {tensor.device for tensor in tensors if tensor.is_cuda}


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def _put_back(state: dict[str, Any], copies: dict[str, Any]) -> None:
    for name in list(state):
        if name not in copies:
            del state[name]
        elif isinstance(state[name], Tensor):
            state[name].copy_(copies[name])
        else:
            state[name] = copies[name]


class Skipping:
    """Counts and tells the chunks that are skipped.

    Attributes:
        num_skipped: So far.
    """

    def __init__(self, on_bad_number: OnBadNumber, snapshot: Callable[[], Snapshot]) -> None:
        self.is_on, self.snapshot = on_bad_number == "skip", snapshot
        self.num_skipped = 0

    def attempt(self, learn: Callable[[], Learned], *, is_told: bool = True) -> Learned | None:
        """Return what learning gives; None if it met NaN or Inf, and everything is as before.

        Args:
            learn: Learns.
            is_told: Whether this is a chunk that is skipped, to be counted and told.

        Raises:
            FloatingPointError: If nothing is to be skipped.
        """
        if not self.is_on:
            return learn()
        before = self.snapshot()
        try:
            return learn()
        except FloatingPointError as error:
            before.restore()
            if is_told:
                self.num_skipped += 1
                LOGGER.warning("skipped a chunk: %s", error)
            return None


def bad_losses(chunks: Sequence[Any], model: nn.Module) -> list[Tensor]:
    """Return NaN for the loss of each chunk that was skipped."""
    return [next(model.parameters()).new_full((), float("nan")) for _ in chunks]
