"""Functions in C++ that are compiled for this processor when they are first needed, where that can be."""

import logging
import sys
import time
from importlib.resources import files
from typing import Any

from fptt._announce import announce

LOGGER = logging.getLogger("fptt")

SECONDS_TO_LOAD = 10.0
"""What takes longer than that was not on the disk."""


def load_machine_code(package: str, source: str, *flags: str) -> Any:
    """Return a library of `ctypes`, compiled if it is not on the disk; None where that cannot be.

    Nothing depends on it: whoever asks has torch's own functions to fall back on.

    Args:
        package: The package in which the file lies, such as `fptt.nn`.
        source: The name of the file.
        *flags: For the compiler, besides those of Inductor.
    """
    if sys.platform == "win32":
        return None  # its compiler has no vector types, and other words for attributes
    start = time.perf_counter()
    try:
        from torch._inductor.codecache import CppCodeCache  # knows the compiler, and where to keep what it made

        code = files(package).joinpath(source).read_text(encoding="utf-8")
        library = CppCodeCache.load(code, extra_flags=flags, needs_vec_isa=False)
    except Exception as error:  # no compiler, one that is too old, a disk that must not run code: all is well without
        LOGGER.info("torch runs in place of %s, which could not be compiled: %s", source, error)
        return None
    seconds = time.perf_counter() - start
    if seconds > SECONDS_TO_LOAD:
        announce(f"compiled {source} in {seconds:.0f} s; it is kept for later processes")
    return library
