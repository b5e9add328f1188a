"""The commands `fptt push` and `fptt pull`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from fptt.experiments.commands.defaults import check_folder
from fptt.experiments.process.console import say


@dataclass(frozen=True, kw_only=True)
class Push:
    """Put a finished run on the Hugging Face hub, as a model with its card.

    Needs `pip install 'fptt[hub]'`, and once `hf auth login`. Of the path of the data only the last part is told.

    fptt push out/first ME/gait-fptt
    """

    folder: tyro.conf.Positional[Path]
    """The run folder."""
    name: tyro.conf.Positional[str]
    """USER/NAME of the model; made if need be."""
    private: bool = False
    """Make a new model private."""
    revision: str | None = None
    """A branch other than the main one."""

    def __call__(self, console: Console) -> None:
        """Push, and print where the model is."""
        from fptt.experiments.training.hub import push

        say(console, f"pushed: {push(self.folder, self.name, private=self.private, revision=self.revision)}")


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Get a run from the Hugging Face hub, as a folder for `fptt predict`, `export`, `evaluate` and `load_run`.

    fptt pull ME/gait-fptt --out out/gait
    """

    name: tyro.conf.Positional[str]
    """USER/NAME of the model."""
    out: Path
    """A new folder."""
    revision: str | None = None
    """A branch, a tag or a commit, other than the main branch."""

    def __call__(self, console: Console) -> None:
        """Pull, and print where the run is."""
        check_folder(self.out)
        from fptt.experiments.training.hub import pull

        say(console, f"pulled: {pull(self.name, self.out, revision=self.revision).path}")


def parse(name: str, arguments: Sequence[str]) -> Push | Pull:
    """Return what the arguments of a command ask for."""
    kinds: dict[str, type[Push | Pull]] = {"push": Push, "pull": Pull}
    return tyro.cli(kinds[name], args=arguments, prog=f"fptt {name}")
