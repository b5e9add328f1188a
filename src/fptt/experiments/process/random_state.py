"""Random states of a run: Python, NumPy, torch and the run's device."""

from typing import Any

import torch

from fptt._random import RandomState


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all generators, as tensors and numbers that `torch.load` reads with `weights_only`."""
    return RandomState.capture(device, include_others=True).state_dict()


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    RandomState.from_state_dict(state, device).restore()
