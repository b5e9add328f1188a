"""Permissions of files, for whoever runs the tests."""

import ctypes
import os
import sys

from tests import forks

VERSION, CAP_DAC_OVERRIDE = 0x20080522, 1
"""Of Linux's capset."""


def obey_permissions() -> None:
    """Take from root, in this process, the right to write where nobody may."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header, sets = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, sets)
        sets[0] &= ~(1 << CAP_DAC_OVERRIDE)  # of those that are in effect
        assert libc.capset(header, sets) == 0


def told_of_lack_of_permission(script: str, *arguments: str) -> str:
    """Return what a script says to the standard error, in one line, when it may not write and ends in good order."""
    locked = forks.run([sys.executable, "-c", script, *arguments], before=obey_permissions)
    told = " ".join(locked.stderr.split())
    assert locked.returncode == 2, locked.stderr
    assert "Permission denied" in told
    assert "Traceback" not in told
    return told
