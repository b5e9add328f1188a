"""Rank of this process, from environment variables."""

import os
import time

# on import, while the parent is sure to live: orphans get another one
_STARTER = os.getppid()


def is_leader() -> bool:
    """Return whether this process leads its run: writes its files and prints."""
    return process_number() == 0 and ("RANK" in os.environ or int(os.environ.get("NODE_RANK", "0")) == 0)


def process_number() -> int:
    """Return the number of this process on its machine, from 0; over all machines where `torchrun` has started it."""
    # in the order of what is most certain: torchrun, Fabric's launcher, Slurm
    numbers = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")]
    return next((int(number) for number in numbers if number is not None), 0)


def is_left_alone(patience: float = 1.0) -> bool:
    """Return whether no process of the run waits for this one: its parent is not one of them, or has died.

    Args:
        patience: Seconds to wait: a process that is killed closes its connections a moment before it is gone.
    """
    end = time.monotonic() + patience
    while process_number() and os.getppid() == _STARTER and time.monotonic() < end:
        time.sleep(0.01)
    return process_number() == 0 or os.getppid() != _STARTER
