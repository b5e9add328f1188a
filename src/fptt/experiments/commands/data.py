"""The command about data sets: `fptt data`."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from fptt.experiments.commands.defaults import check_folder
from fptt.experiments.process.console import say


@dataclass(frozen=True, kw_only=True)
class Data:
    """Convert the original archive of a data set to the Parquet files that its task reads.

    The archive's SHA-256 is printed, and what was found is compared with what the original holds.

    fptt data har ARCHIVE.zip --out data/har     UCI HAR: 10,299 windows of nine signals

    fptt data hapt ARCHIVE.zip --out data/hapt   HAPT: 61 recordings, for --task hapt and fptt stream

    fptt data ptb simple-examples.tgz --out data Penn Treebank: data/ptb-word and data/ptb-char
    """

    name: tyro.conf.Positional[Literal["har", "hapt", "ptb"]]
    """The data set."""
    archive: tyro.conf.Positional[Path]
    """Its archive: of har and hapt a zip file of the UCI repository, of ptb simple-examples.tgz."""
    out: Path
    """Folder for the Parquet files. It must be new or empty; of ptb, its folders ptb-word and ptb-char must be."""

    def __call__(self, console: Console) -> None:
        """Convert, and print what was found."""
        check_folder(self.out)
        from fptt.experiments.tasks.archives import FOLDERS, Archive, convert  # seconds of loading

        with Archive(self.archive) as archive:
            say(console, f"{self.archive}: SHA-256 {archive.digest()}")
            parts = convert(self.name, archive, self.out)
        for part in parts:
            verdict = "as in the original" if part.is_original else "which the original has not"
            say(console, f"{part.path}: {part.found}, {verdict}")
        for folder in FOLDERS[self.name]:
            data = shlex.quote((self.out / folder).as_posix())
            say(console, f"to use it: fptt train --task {folder or self.name} --data {data}")


def parse(name: str, arguments: Sequence[str]) -> Data:
    """Return what the arguments of the command ask for."""
    return tyro.cli(Data, args=arguments, prog=f"fptt {name}")
