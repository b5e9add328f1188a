"""A thread in which denormal numbers are flushed to zero, on every core."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_flushed(function: Callable[[], Result]) -> Result:
    """Call a function where denormals are zero, and return what it returns.

    `torch.set_flush_denormal` reaches the calling thread and the workers that are started from it later, not those of
    a pool that runs already. A thread of its own has a pool of its own, and the caller's mode stays as it is.
    Ctrl-C waits for the function to end, so that nothing runs on behind the caller's back.
    """
    future = _executor(os.getpid()).submit(_call, function, torch.get_num_threads())
    try:
        return future.result()
    except BaseException:
        wait([future])
        raise


def _call(function: Callable[[], Result], num_threads: int) -> Result:
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
    return function()


@cache
def _executor(process: int) -> ThreadPoolExecutor:  # noqa: ARG001  # a forked process has no thread of its parent's
    return ThreadPoolExecutor(1, "fptt-engine", initializer=torch.set_flush_denormal, initargs=(True,))
