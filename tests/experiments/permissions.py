"""Permissions of files, for whoever runs the tests."""

import ctypes
import os

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE = 1


def obey_permissions() -> None:
    """Take from root, in a process that is about to start another program, the right to write where nobody may."""
    if os.geteuid() == 0:
        ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
