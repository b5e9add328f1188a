"""What the C library does with freed memory."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def keep_freed_memory() -> bool:
    """Let the process keep all memory that it frees; return whether the C library can: glibc does.

    By default glibc gives large blocks, and the top of the heap, back to the system, which has to find pages for the
    next ones. How often depends on what lies where, so on what ran before, and it can take BPTT about as long as its
    arithmetic.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_MMAP_MAX, 0))
