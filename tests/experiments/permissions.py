"""Permissions of files, for whoever runs the tests."""

import ctypes
import os
import subprocess
import sys

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE = 1


def obey_permissions() -> None:
    """Take from root, in a process that is about to start another program, the right to write where nobody may."""
    if os.geteuid() == 0:
        ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def told_of_lack_of_permission(script: str, *arguments: str) -> str:
    """Return what a script says to the standard error, in one line, when it may not write and ends in good order."""
    command = [sys.executable, "-c", script, *arguments]
    locked = subprocess.run(command, preexec_fn=obey_permissions, capture_output=True, text=True, check=False)
    told = " ".join(locked.stderr.split())
    assert locked.returncode == 2, locked.stderr
    assert "Permission denied" in told
    assert "Traceback" not in told
    return told
