"""Whether this process leads a run of several, told by who has started it, before anything heavy is loaded."""

import os


def is_leader() -> bool:
    """Tell whether this process writes and speaks: the first of a run, which is not known yet."""
    return process_number() == 0 and ("RANK" in os.environ or int(os.environ.get("NODE_RANK", "0")) == 0)


def process_number() -> int:
    """Return the number of this process on its machine, from 0; over all machines where `torchrun` has started it."""
    numbers = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")]
    return next((int(number) for number in numbers if number is not None), 0)
