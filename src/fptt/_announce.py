"""Announcements of work that takes long and that nobody asked for, such as a compilation."""

import logging
import sys

LOGGER = logging.getLogger("fptt")


def announce(text: str) -> None:
    """Tell through the logger `fptt`, or to the terminal where nobody has set up logging."""
    if LOGGER.hasHandlers():
        LOGGER.info(text)
    else:
        print(f"fptt: {text}", file=sys.stderr, flush=True)
