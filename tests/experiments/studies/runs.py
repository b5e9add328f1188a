"""Run folders as `fptt train` leaves them, made up."""

from pathlib import Path
from typing import Any

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.training.folder import RunFolder

SMALL = TrainConfig(task="digits", num_chunks=4, threads=1)


def write_run(path: Path, config: TrainConfig, test: float = 0.5, **changes: Any) -> RunFolder:
    """Leave a run as `fptt train` does; a change of ... takes a key out of the summary."""
    folder = RunFolder(path)
    folder.create(config)
    updates = changes.get("updates", 40)
    for epoch in (1, 2, 3):
        folder.append_metrics(
            {"epoch": epoch, "updates": epoch * updates // 3, "seconds": epoch, "validation_accuracy": epoch / 10}
        )
    summary = {
        "task": config.task,
        "method": config.method,
        "seed": config.seed,
        "test_accuracy": test,
        "test_macro_f1": test / 2,
        "test_cross_entropy": 1.5,
        "test_other": 9.0,
        "validation_accuracy": 0.25,
        "status": "finished",
        "epochs": 3.0,
        "updates": updates,
        "seconds": 2.0,
        "peak_memory_bytes": 2**21,
        "training_memory_bytes": 2**20,
        "device": "cpu (abacus)",
        "torch": "2.9",
        "commit": "0123456789abcdef",
        **changes,
    }
    folder.write_summary({name: value for name, value in summary.items() if value is not ...})
    return folder
