"""The folder of one stream: the only place that knows its file names."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fptt.experiments.process.errors import UserError
from fptt.experiments.process.files import replace_text, replaced
from fptt.experiments.streams.scores import ROLLING
from fptt.experiments.training.folder import OutFolder, RunFolder, check_not_of


class StreamFolder(OutFolder):
    """Summary, rolling metrics, plot, the learner as it was at the end, and until then checkpoints."""

    command = "stream"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.rolling_file = path / ROLLING
        self.plot_file = path / "rolling.png"
        self.learner_file = path / "learner.pt"

    def files(self) -> list[Path]:
        """Return every file that a whole stream may have, without checkpoints."""
        return [self.summary_file, self.rolling_file, self.plot_file, self.learner_file]

    def check(self, *, overwrite: bool) -> None:
        """Raise UserError if the folder holds something that may not be overwritten, as a run of `fptt train`."""
        if overwrite:
            self.check_replaceable()
        else:
            self.check_free()

    def check_resumable(self) -> None:
        """Raise UserError if the folder is not there or is one of `fptt train`, or if its stream is finished."""
        if not self.path.is_dir():
            raise UserError(f"stream folder {self.path} does not exist.")
        check_not_of(self.path, "train")
        # with a checkpoint it may have been killed before the last of its files was written
        if self.checkpoints.files() or not self.summary_file.exists():
            return
        if RunFolder(self.path).read_summary().get("status") == "finished":
            raise UserError(f"the stream in {self.path} is finished: there is nothing to resume.")

    def write(self, summary: Mapping[str, Any], rolling: Sequence[Mapping[str, Any]], learner: Mapping) -> None:
        """Write all but the plot.

        Raises:
            UnwritableError: If a file cannot be written.
        """
        with replaced(self.rolling_file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rolling[0]) if rolling else ["step"])
            writer.writeheader()
            writer.writerows(rolling)
        with replaced(self.learner_file) as temporary, temporary.open("wb") as file:
            torch.save(dict(learner), file)
        replace_text(self.summary_file, json.dumps(summary, indent=2) + "\n")
