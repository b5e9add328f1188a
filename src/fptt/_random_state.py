"""Random number generators, captured and restored together."""

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """The states of the global generators: torch's, those of CUDA devices, on request Python's and NumPy's.

    NumPy is not imported here: its global generator belongs to the state where NumPy is loaded already, since nothing
    can have drawn from it otherwise.

    Attributes:
        cpu: Of torch's generator on the CPU.
        devices: Of the generator of each CUDA device.
        python: Of the module `random`; None if it was not asked for.
        numpy: Of NumPy's global generator; None if it was not asked for or NumPy is not loaded.

    Examples:
        >>> before = RandomState.capture()
        >>> drawn = torch.rand(2)
        >>> before.restore()
        >>> torch.equal(torch.rand(2), drawn)
        True
    """

    cpu: Tensor
    devices: dict[torch.device, Tensor]
    python: tuple[Any, ...] | None = None
    numpy: tuple[Any, ...] | None = None

    @classmethod
    def capture(
        cls, devices: torch.device | str | Iterable[torch.device] = (), *, include_others: bool = False
    ) -> "RandomState":
        """Return the states now, as copies that later draws do not change.

        Args:
            devices: One device or several; those that are not CUDA devices have no generator of their own here.
            include_others: Whether Python's and NumPy's belong to it.
        """
        numpy = sys.modules.get("numpy") if include_others else None
        return cls(
            torch.get_rng_state(),
            {device: torch.cuda.get_rng_state(device) for device in _cuda_devices(devices)},
            random.getstate() if include_others else None,
            None if numpy is None else numpy.random.get_state(),
        )

    def restore(self) -> None:
        """Set every captured generator back to its captured state; the others stay where they are."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            torch.cuda.set_rng_state(state, device)
        if self.python is not None:
            random.setstate(self.python)
        numpy = sys.modules.get("numpy")
        if self.numpy is not None and numpy is not None:
            numpy.random.set_state(self.numpy)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Draw the numbers that followed this state once more; afterwards all goes on as if nothing had been drawn."""
        now = RandomState.capture(self.devices, include_others=self.python is not None)
        self.restore()
        try:
            yield
        finally:
            now.restore()

    def equals(self, other: "RandomState") -> bool:
        """Return whether both are the same states of the same generators: whether nothing was drawn between them."""
        return (
            torch.equal(self.cpu, other.cpu)
            and self.devices.keys() == other.devices.keys()
            and all(torch.equal(state, other.devices[device]) for device, state in self.devices.items())
            and self.python == other.python
            and _comparable(self.numpy) == _comparable(other.numpy)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and lists, which `torch.load` reads with `weights_only=True`."""
        python, numpy = self.python, self.numpy
        return {
            "torch": self.cpu,
            "devices": list(self.devices.values()),  # in order, not by name: a run may resume on another device
            "python": None if python is None else [python[0], list(python[1]), python[2]],
            # torch has few operations on unsigned integers: int64 holds the same numbers
            "numpy": None if numpy is None else [numpy[0], torch.tensor(numpy[1].astype("int64")), *numpy[2:]],
        }

    @classmethod
    def from_state_dict(
        cls, state_dict: dict[str, Any], devices: torch.device | str | Iterable[torch.device] = ()
    ) -> "RandomState":
        """Return the random state that was saved, for these devices in the order of those it was captured on.

        A device beyond the saved ones keeps its generator as it is.

        Raises:
            KeyError: If a key is missing.
        """
        python, numpy = state_dict["python"], state_dict["numpy"]
        saved = zip(_cuda_devices(devices), state_dict["devices"], strict=False)
        return cls(
            state_dict["torch"].cpu(),  # a checkpoint may have been mapped to an accelerator as a whole
            {device: state.cpu() for device, state in saved},
            None if python is None else (python[0], tuple(python[1]), python[2]),
            None if numpy is None else (numpy[0], numpy[1].cpu().numpy().astype("uint32"), *numpy[2:]),
        )


def _cuda_devices(devices: torch.device | str | Iterable[torch.device]) -> list[torch.device]:
    found = [torch.device(devices)] if isinstance(devices, torch.device | str) else list(devices)
    return [device for device in dict.fromkeys(found) if device.type == "cuda"]


def _comparable(numpy_state: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Return a state of NumPy's generator with its keys as bytes: arrays do not compare to one truth value."""
    return None if numpy_state is None else (numpy_state[0], numpy_state[1].tobytes(), *numpy_state[2:])
