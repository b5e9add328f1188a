"""The examples run, and are the same training: whoever's loop it is, FPTT makes the same updates."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt.integrations.lightning import FPTTCallback
from tests import forks

EXAMPLES = Path(__file__).parents[2] / "examples"
LOOPS = ("plain_pytorch", "lightning_module", "accelerate_loop")  # by hand, with the same operations


def one_thread() -> None:
    torch.set_num_threads(1)  # a fork has read OMP_NUM_THREADS already


@pytest.mark.parametrize("name", [*LOOPS, "fabric", "skorch_estimator"])
def test_an_example_runs_and_learns(name: str, tmp_path: Path) -> None:
    """One in a process of its own, the others forked."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--epochs", "2"]
    options: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    if name == "plain_pytorch":
        result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    else:
        result = forks.run(command, before=one_thread, **options)
    assert result.returncode == 0, result.stderr
    found = re.fullmatch(r"test accuracy (0\.\d{4})", result.stdout.splitlines()[-1])
    assert found is not None
    assert float(found[1]) > 0.25  # chance is 0.1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module that the examples share, with five batches instead of 45."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    shared = importlib.import_module("digits")
    parts = [part[:160] for part in shared.pixels()]
    monkeypatch.setattr(shared, "pixels", lambda: parts)
    return shared


def trained(name: str) -> list[Tensor]:
    return list(importlib.import_module(name).train(epochs=2).parameters())


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.usefixtures("float64", "few_images")
def test_all_loops_train_the_same_weights() -> None:
    """Those by hand to the last bit; the method of the Fabric example sums its loss in another order."""
    plain, *others = (trained(name) for name in LOOPS)
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(plain, other, strict=True))
    for one, other in zip(plain, trained("fabric"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_the_lightning_module_goes_on_from_its_checkpoint(few_images: Any, tmp_path: Path) -> None:
    """Averages and duals too, bit for bit; and Lightning's `global_step` counts the updates."""
    lightning = importlib.import_module("lightning")
    make_module = importlib.import_module("lightning_module").DigitsModule
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False}
    same_order: Any = list(few_images.loaders()[0])
    batches = torch.utils.data.DataLoader(same_order, batch_size=None)

    def fit(module: Any, epochs: int, **options: Any) -> Any:
        trainer = lightning.Trainer(max_epochs=epochs, callbacks=[FPTTCallback(max_norm=1.0)], **quiet)
        trainer.fit(module, batches, **options)
        return trainer

    whole, begun, resumed = (make_module() for _ in range(3))
    expected = fit(whole, 2).callbacks[0].regularizer
    trainer = fit(begun, 1)
    assert trainer.global_step == 4 * len(batches)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    found = fit(resumed, 2, ckpt_path=tmp_path / "half.ckpt").callbacks[0].regularizer
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(expected.state.values(), found.state.values(), strict=True):
        assert torch.equal(one.average, other.average)
        assert torch.equal(one.dual, other.dual)
