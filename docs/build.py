"""The documentation as a site: pages made from the program and from the notebooks, then Zensical.

python docs/build.py [--no-execute]     notebooks without what they print and draw, in seconds
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

DOCS = Path(__file__).parent
WIDTH = "84"  # columns of the help that fit beside the two menus of a page


def main() -> None:
    """Build the site into `site/`."""
    write_command_line(DOCS / "reference" / "command-line.md")
    for notebook in sorted((DOCS / "notebooks").glob("*.py")):
        write_notebook(notebook, execute="--no-execute" not in sys.argv[1:])
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run(build, cwd=DOCS.parent, check=True)


def write_command_line(page: Path) -> None:
    """Write the reference of the command line: what every command prints with `--help`."""
    overview = help_of([])
    parts = [
        "# Command line",
        "`fptt` needs `pip install '.[experiments]'` in a checkout.",
        f"```text\n{overview}\n```",
    ]
    for name in re.findall(r"^  fptt (\w+)   ", overview, re.M):
        parts += [f"## fptt {name}", f"```text\n{help_of([name])}\n```"]
        for subcommand in ("speed", "spiking", "memory", "convergence") if name == "bench" else ():
            parts += [f"### fptt bench {subcommand}", f"```text\n{help_of([name, subcommand])}\n```"]
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n\n".join([*parts, ""]), encoding="utf-8")


def help_of(command: list[str]) -> str:
    """Return what `fptt COMMAND --help` prints."""
    from fptt.__main__ import main as fptt

    printed = io.StringIO()
    environment = {"COLUMNS": WIDTH, "NO_COLOR": "1"}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", ["fptt", *command, "--help"]),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        fptt()
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def write_notebook(notebook: Path, *, execute: bool) -> None:
    """Write a notebook, a .py file in jupytext's percent format, as a page: text, code, and what the code showed."""
    jupytext: Any = import_module("jupytext")  # of the group docs
    page = notebook.with_suffix(".md")
    names: dict[str, object] = {"__name__": "__main__"}
    parts = []
    with figures_beside(page) as figures:
        for cell in jupytext.read(notebook).cells:
            if cell.cell_type == "markdown":
                parts.append(cell.source)
                continue
            parts.append(f"```python\n{cell.source}\n```")
            if not execute:
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(cell.source, str(notebook), "exec"), names)
            if text := printed.getvalue().rstrip():
                parts.append(f"```text\n{text}\n```")
            parts += [f"![Drawn by the code above]({page.stem}/{name})" for name in figures()]
    name = f"docs/notebooks/{notebook.name}"
    parts.append(f"*This page is the notebook `{name}`: `jupytext --to ipynb {name}` opens it in Jupyter.*")
    page.write_text("\n\n".join([*parts, ""]), encoding="utf-8")


@contextlib.contextmanager
def figures_beside(page: Path) -> Iterator[Callable[[], list[str]]]:
    """Yield a function that saves the open figures in the folder of the page's name, and returns their names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    saved: list[str] = []

    def save() -> list[str]:
        folder = page.with_suffix("")
        folder.mkdir(exist_ok=True)
        new = []
        for number in plt.get_fignums():
            new.append(f"{len(saved) + len(new) + 1}.svg")
            plt.figure(number).savefig(folder / new[-1])
        plt.close("all")
        saved.extend(new)
        return new

    yield save
    plt.close("all")


if __name__ == "__main__":
    main()
