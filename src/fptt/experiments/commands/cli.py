"""The command line: from arguments to an exit code."""

import signal
from collections.abc import Callable, Sequence
from importlib import import_module

from rich.console import Console

from fptt import LostProcessError, __version__
from fptt.experiments.process.console import OutputConsole, logging_to, say
from fptt.experiments.process.errors import ReportedError, UserError
from fptt.experiments.process.rank import is_leader, is_left_alone, process_number
from fptt.experiments.process.signals import INTERRUPTED, handle_signals
from fptt.experiments.tasks.registry import TASKS

_TASK_LINES = "\n".join(f"  {name:<10} {about}" for name, about in TASKS.items())

OVERVIEW = f"""\
fptt {__version__}: train recurrent networks forward in time, with FPTT beside BPTT and TBPTT

  fptt train      train one model on one task; leaves a folder with weights, metrics and plots
  fptt evaluate   measure a trained model on the test data again
  fptt predict    predict new data with a trained model, into a CSV or Parquet file
  fptt export     write a trained model as a program for places without this library
  fptt push       put a finished run on the Hugging Face hub
  fptt pull       get a run from there
  fptt sample     generate text with a trained language model
  fptt stream     learn from a stream, predicting each step before learning it
  fptt data       convert the original archive of a data set to files that its task reads
  fptt recipes    list the settings that have a name: what they show, how long they take
  fptt compare    train with several methods and seeds; a table at equal epochs, updates and time
  fptt ablate     vary settings of a recipe; a table and a plot
  fptt report     make the page of results from the summaries of all finished runs
  fptt bench      measure the time and memory of the methods on this machine

tasks (more: fptt COMMAND --help):
{_TASK_LINES}

first steps:
  fptt train --task digits --method fptt --out out/first
  fptt evaluate out/first
  fptt compare --task digits --methods bptt,tbptt,fptt --seeds 3 --out out/compare
"""

Command = Callable[[Console], None]

COMMANDS = {
    "train": "runs",
    "evaluate": "runs",
    "predict": "runs",
    "export": "runs",
    "push": "hub",
    "pull": "hub",
    "sample": "runs",
    "stream": "stream",
    "data": "data",
    "compare": "studies",
    "ablate": "studies",
    "report": "studies",
    "recipes": "studies",
    "bench": "bench",
}
"""The module of each command, which has a function `parse(name, arguments) -> Command`; imported when it is needed."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0, 2 for a user error, 130 after Ctrl-C, SIGTERM or SIGHUP."""
    console, errors = OutputConsole(quiet=not is_leader()), OutputConsole(stderr=True)
    handle_signals(signal.default_int_handler)  # all of them end a run in good order
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            say(console, OVERVIEW)
        elif arguments[0] == "--version":
            say(console, __version__)
        else:
            command = _parse(arguments[0], arguments[1:], console)
            with logging_to(console):
                command(console)
    except UserError as error:
        return _report(error, errors)
    except KeyboardInterrupt:
        if is_leader():
            say(errors, "fptt: interrupted.")
        return INTERRUPTED if is_leader() else 0
    return 0


def _parse(name: str, arguments: Sequence[str], console: OutputConsole) -> Command:
    """Return what the arguments of a command ask for.

    Raises:
        UserError: If there is no such command, or an argument is wrong.
        SystemExit: After the help, or an error in the arguments, which tyro prints.
    """
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; there are {', '.join(COMMANDS)}.")
    try:
        return import_module(f"fptt.experiments.commands.{COMMANDS[name]}").parse(name, arguments)
    except BrokenPipeError:  # of tyro's help, which does not go through the console: its reader has seen enough
        console.on_broken_pipe()
        raise SystemExit(0) from None


def _report(error: UserError, errors: Console) -> int:
    """Print an error and return the exit code.

    Non-leading processes exit with 0: on a non-zero code Fabric would kill the leader, which still has to complete the
    run folder and reports lost peers itself; unless the leader is what was lost.
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
