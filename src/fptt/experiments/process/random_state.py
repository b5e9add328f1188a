"""Where every source of random numbers stands: Python's, NumPy's, torch's, and that of the device."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Any]:
    """Return where they stand, as tensors and numbers."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # the global one is what libraries draw from
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go back to what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(_on_processor(state["torch"]))
    if device.type == "cuda":
        torch.cuda.set_rng_state(_on_processor(state["device"]), device)


def _on_processor(state: Tensor) -> Tensor:
    return state.cpu()
