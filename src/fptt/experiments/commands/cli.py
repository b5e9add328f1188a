"""The command line: which command is asked for, and how it ends."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from rich.console import Console

from fptt import LostProcessError, __version__
from fptt.experiments.commands.bench import parse_bench
from fptt.experiments.commands.runs import parse_evaluate, parse_sample, parse_train
from fptt.experiments.commands.stream import parse_stream
from fptt.experiments.commands.studies import parse_ablate, parse_compare, parse_recipes, parse_report
from fptt.experiments.process.console import announcements_on, say
from fptt.experiments.process.errors import ReportedError, UserError
from fptt.experiments.process.rank import is_leader, is_left_alone, process_number
from fptt.experiments.tasks.registry import TASKS

INTERRUPTED = 130
BROKEN_PIPE = 141

_TASK_LINES = "\n".join(f"  {name:<10} {about}" for name, about in TASKS.items())

OVERVIEW = f"""\
fptt {__version__}: train recurrent networks forward in time, with FPTT beside BPTT and TBPTT

  fptt train      train one model on one task; leaves a folder with weights, figures and a picture
  fptt evaluate   measure a trained model on the test data again
  fptt sample     let a trained language model write
  fptt stream     learn from a stream as it comes, each step answered before it is learned
  fptt recipes    list the settings that have a name: what they show, how long they take
  fptt compare    train with several methods and seeds; a table at equal epochs, updates and time
  fptt ablate     vary settings of a recipe; a table and a picture
  fptt report     the page of results from the summaries of all finished runs
  fptt bench      measure the time and memory of the methods on this machine

tasks (more: fptt COMMAND --help):
{_TASK_LINES}

first steps:
  fptt train --task digits --method fptt --out out/first
  fptt evaluate out/first
  fptt compare --task digits --methods bptt,tbptt,fptt --seeds 3 --out out/compare
"""

Command = Callable[[Console], None]

COMMANDS: dict[str, Callable[[Sequence[str]], Command]] = {
    "train": parse_train,
    "evaluate": parse_evaluate,
    "sample": parse_sample,
    "stream": parse_stream,
    "compare": parse_compare,
    "ablate": parse_ablate,
    "report": parse_report,
    "recipes": parse_recipes,
    "bench": parse_bench,
}
"""What each command makes of its arguments."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0, 2 for a user's slip, 130 after Ctrl-C."""
    console, errors = Console(quiet=not is_leader()), Console(stderr=True)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end a run in good order
    try:
        command = _command(arguments[0], arguments[1:])
        with announcements_on(console):
            command(console)
    except UserError as error:
        return _tell(error, errors)
    except BrokenPipeError:  # the reader, such as `head`, has gone: nothing is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        if is_leader():
            say(errors, "fptt: interrupted.")
        return INTERRUPTED if is_leader() else 0
    return 0


def _tell(error: UserError, errors: Console) -> int:
    """Say what went wrong, and return the exit code.

    On GPUs Fabric kills the first process when another has ended with a code; but it has a folder to complete. It
    notices by itself when another is gone, and is the one to say so, unless it is itself what is gone.
    """
    if is_leader():
        say(errors, f"fptt: {error}")
        return 2
    if isinstance(error, ReportedError):
        return 0
    is_lost = isinstance(error.__cause__, LostProcessError)
    if is_lost and not is_left_alone():
        return 0
    say(errors, f"fptt, process {process_number()}: {error}")
    return 2 if is_lost else 0


def _command(name: str, arguments: Sequence[str]) -> Command:
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; there are {', '.join(COMMANDS)}.")
    return COMMANDS[name](arguments)
