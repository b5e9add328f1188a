"""Whoever starts the two processes of a run, and wherever they are: the weights are the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest

from fptt import __main__
from fptt.experiments.training.folder import RunFolder
from tests.experiments.training.test_devices import QUICK, free_port
from tests.experiments.training.test_precision import distance

FPTT = ("-m", "fptt", "train", *QUICK, "--epochs", "2")
TORCHRUN = ("-m", "torch.distributed.run")
FABRIC_RUN = ("-m", "lightning_fabric.cli", "--accelerator", "cpu", "--devices", "2", "--main-port", "{port}")
NODE = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", "{port}")

LAUNCHED = {
    "torchrun": [[*TORCHRUN, "--standalone", "--nproc-per-node", "2", *FPTT, "--devices", "2"]],
    "fabric run": [[*FABRIC_RUN, str(__main__.__file__), "--", *FPTT[2:], "--devices", "2"]],
    "two nodes": [
        [*TORCHRUN, *NODE, "--node-rank", str(n), *FPTT, "--devices", "1", "--num-nodes", "2"] for n in (0, 1)
    ],
}
"""What is started, on each machine."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("devices")]


def run_all(commands: list[list[str]], out: Path) -> str:
    """Run commands side by side to their good end; return what they say."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, *(part.format(port=port) for part in command), "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return "".join(outputs)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("launchers") / "plain")
    run_all([[*FPTT, "--devices", "2"]], folder.path)
    return folder


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_the_weights_are_the_same(launcher: str, plain: RunFolder, tmp_path: Path) -> None:
    if launcher == "fabric run":
        pytest.importorskip("click")
    folder = RunFolder(tmp_path / "run")
    output = run_all(LAUNCHED[launcher], folder.path)
    assert output.count("test accuracy") == 1
    assert "Initializing" not in output
    for averages in (False, True):
        assert distance(folder.read_weights(averages=averages), plain.read_weights(averages=averages)) == 0
    assert folder.read_summary()["processes"] == 2
