"""Whether this process leads a run of several, told by who has started it, before anything heavy is loaded."""

import os
import time

_STARTER = os.getppid()


def is_leader() -> bool:
    """Tell whether this process writes and speaks: the first of a run, which is not known yet."""
    return process_number() == 0 and ("RANK" in os.environ or int(os.environ.get("NODE_RANK", "0")) == 0)


def process_number() -> int:
    """Return the number of this process on its machine, from 0; over all machines where `torchrun` has started it."""
    numbers = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")]
    return next((int(number) for number in numbers if number is not None), 0)


def is_left_alone(patience: float = 1.0) -> bool:
    """Tell whether nobody of the run waits for this process: its starter is none of it, or has died.

    Args:
        patience: Seconds. A process that is killed closes its connections a moment before it is gone.
    """
    end = time.monotonic() + patience
    while process_number() and os.getppid() == _STARTER and time.monotonic() < end:
        time.sleep(0.01)
    return process_number() == 0 or os.getppid() != _STARTER
