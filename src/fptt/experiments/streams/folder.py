"""The folder of a stream: the only place that knows its file names."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fptt.experiments.process.errors import UserError
from fptt.experiments.process.files import replace_text, replaced
from fptt.experiments.training.checkpoints import Checkpoints
from fptt.experiments.training.folder import RunFolder

ROLLING = "rolling.csv"
"""The file that tells a stream from a run."""


class StreamFolder:
    """Summary, rolling accuracies, picture, the learner as it was at the end, and until then checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary_file = path / "summary.json"
        self.rolling_file = path / ROLLING
        self.picture_file = path / "rolling.png"
        self.learner_file = path / "learner.pt"
        self.checkpoints = Checkpoints(path)

    @property
    def resume_command(self) -> str:
        """What goes on with the stream."""
        return f"fptt stream --resume --out {self.path}"

    def create(self, *, overwrite: bool) -> None:
        """Make the folder, and take an earlier stream out of it.

        Raises:
            UserError: If it holds something and may not be overwritten, or cannot be written.
        """
        if not overwrite:
            RunFolder(self.path).check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in (self.summary_file, self.rolling_file, self.picture_file, self.learner_file):
                file.unlink(missing_ok=True)
            self.checkpoints.remove()
        except OSError as error:
            raise UserError(f"out {self.path} cannot be written: {error}.") from error

    def write(self, summary: Mapping[str, Any], rolling: Sequence[Mapping[str, Any]], learner: Mapping) -> None:
        """Write all but the picture.

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
