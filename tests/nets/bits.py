"""A net for refactoring: hashes of the results of small runs, to compare the code before and after a change.

python tests/nets/bits.py OUT.json [--only PATTERN ...]       make the runs and write their hashes
python tests/nets/bits.py --compare A.json B.json [--only …]  print which runs differ; exit 1 if any does

The hashes are those of one machine and one version of PyTorch: make both files on the same.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree as pytree

import fptt


def averages_and_duals(regularizer: Any) -> dict[str, list[Tensor]]:
    """Return W̄ and λ of all parameters that have begun, in their order."""
    state = regularizer.state_dict()["state"]
    return {f"{name}s": [state[key][name] for key in sorted(state)] for name in ("average", "dual")}


# -- hashes ------------------------------------------------------------------------------------------------------------

Bits = dict[str, str]
"""A hash, or a plain number, of each figure of a run."""


def bits_of(nest: Any) -> str:
    """Return the hash of the tensors and numbers in a nest."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(nest):
        if not isinstance(leaf, Tensor):
            digest.update(repr(leaf).encode())
            continue
        tensor = leaf.detach().cpu().contiguous()
        if tensor.is_floating_point():
            tensor = torch.where(tensor.isnan(), torch.full_like(tensor, torch.nan), tensor)  # all NaN alike
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:24]


def bits_of_training(method: Any, results: Iterable[Any]) -> Bits:
    """Return the bits of everything that a method leaves."""
    results = list(results)
    figures: dict[str, Any] = {
        name: [getattr(result, name) for result in results]
        for name in ("loss", "chunk_losses", "penalty", "gradient_norm", "updates", "skipped", "state")
    }
    figures["weights"] = list(method.model.state_dict().values())
    figures["loss_memory"] = list(method.loss.state_dict().values())
    moments = method.optimizer.state_dict()["state"]
    figures["moments"] = [[moments[key][name] for name in sorted(moments[key])] for key in sorted(moments)]
    figures["counters"] = [method.batches, method.updates, method.timesteps, method.skipped]
    if method.regularizer is not None:
        figures |= averages_and_duals(method.regularizer)
    return {name: bits_of(nest) for name, nest in figures.items()}


# -- small problems ----------------------------------------------------------------------------------------------------

T, B, D, H, C = 13, 3, 2, 4, 3


def make_model(cell: str = "LSTM", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(fptt.nn, cell)(D, H, C, **options).double()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def terminal(divergence: Any = "uniform") -> fptt.TerminalLoss:
    return fptt.TerminalLoss(functional.cross_entropy, divergence=divergence).double()


def sequence() -> fptt.SequenceLoss:
    return fptt.SequenceLoss(functional.cross_entropy)


def batches(*, per_step: bool, count: int = 3, steps: int = T) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        inputs = torch.randn(steps, B, D, generator=generator, dtype=torch.float64)
        yield inputs, torch.randint(C, (steps, B) if per_step else (B,), generator=generator)


def ragged() -> Tensor:
    return fptt.length_mask(torch.tensor([T, 7, 10]), T)


def beginnings() -> Tensor:
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[[0, 3, 6], [1, 0, 2]] = True
    return is_first


def train(method: Any, *, carry: bool = False, bad_batch: int | None = None, steps: int = T, **arguments: Any) -> Bits:
    """Train on three batches, from the state of the one before if asked; with a NaN in one of them if asked."""
    torch.manual_seed(2)  # of dropout
    results, state = [], None
    for number, (inputs, targets) in enumerate(batches(per_step=method.loss.per_step, steps=steps)):
        if number == bad_batch:
            inputs[6, 1, 0] = torch.nan
        results.append(method.train_batch(inputs, targets, state=state, **arguments))
        state = results[-1].state if carry else None
    return bits_of_training(method, results)


# -- runs of the library -----------------------------------------------------------------------------------------------


def bptt(**options: Any) -> Bits:
    model = make_model()
    return train(fptt.BPTT(model, adam(model), terminal(), **options))


def bptt_skip() -> Bits:
    model = make_model("GRU")
    return train(fptt.BPTT(model, sgd(model), sequence(), num_chunks=2, on_bad_number="skip"), bad_batch=1)


def tbptt(engine: Any) -> Bits:
    model = make_model("GRU")
    method = fptt.TBPTT(model, sgd(model), sequence(), chunk_length=5, engine=engine, max_norm=0.2)
    return train(method, carry=True)


def tbptt_is_first() -> Bits:
    model = make_model()
    method = fptt.TBPTT(model, sgd(model), sequence(), num_chunks=3)
    return train(method, carry=True, is_first=beginnings(), mask=ragged())


def tbptt_batch_first() -> Bits:
    model = make_model(batch_first=True)
    method = fptt.TBPTT(model, adam(model), sequence(), num_chunks=3, batch_first=True)
    inputs, targets = next(batches(per_step=True))
    result = method.train_batch(inputs.transpose(0, 1), targets.transpose(0, 1), mask=ragged().T)
    return bits_of_training(method, [result])


def tbptt_packed() -> Bits:
    model = make_model()
    method = fptt.TBPTT(model, sgd(model), sequence(), num_chunks=3)
    parts = [
        pack_sequence([part[:n, lane] for lane, n in enumerate((7, T, 10))], enforce_sorted=False)
        for part in next(batches(per_step=True))
    ]
    return bits_of_training(method, [method.train_batch(parts[0], parts[1])])


def fptt_terminal(engine: Any) -> Bits:
    model = make_model(last_only=True)
    return train(fptt.FPTT(model, adam(model), terminal(), num_chunks=4, engine=engine), steps=12)


def fptt_prior(engine: Any) -> Bits:
    """Released and coupled, with a running prior, a mask and clipping."""
    model = make_model()
    options: dict[str, Any] = {"form": "released", "coupling": "coupled", "mu": 2.0, "beta": 0.7, "max_norm": 0.1}
    loss = terminal(fptt.RunningPrior(C, decay=0.8))
    return train(fptt.FPTT(model, sgd(model), loss, num_chunks=4, engine=engine, **options), mask=ragged())


def fptt_skip(engine: Any) -> Bits:
    model = make_model("GRU")
    method = fptt.FPTT(model, adam(model), sequence(), num_chunks=3, on_bad_number="skip", engine=engine)
    return train(method, carry=True, bad_batch=1, steps=12)


def fptt_form(form: Any, coupling: Any, **options: Any) -> Bits:
    model = make_model("RNN", readout_sizes=[5])
    method = fptt.FPTT(model, sgd(model), sequence(), chunk_length=4, form=form, coupling=coupling, **options)
    return train(method, carry=True, mask=ragged())


def fptt_recomputed() -> Bits:
    """With dropout, whose random numbers are drawn again."""
    model = make_model(num_layers=2, dropout=0.3)
    options: dict[str, Any] = {"coupling": "coupled", "previous_gradient": "recomputed", "alpha": 0.5}
    return train(fptt.FPTT(model, adam(model), sequence(), num_chunks=3, **options))


def fptt_num_duals() -> Bits:
    model = make_model(last_only=True)
    return train(fptt.FPTT(model, adam(model), terminal(), num_chunks=3, num_duals=3))


def regularizer_by_hand() -> Bits:
    model = make_model("GRU")
    optimizer = sgd(model)
    regularizer = fptt.DynamicRegularizer(model.parameters(), alpha=0.3, coupling="coupled")
    regularizer.attach(optimizer, max_norm=0.5)
    inputs, targets = next(batches(per_step=True))
    state, losses = None, []
    for x, y in fptt.split_sequence(inputs, targets, num_chunks=4):
        output, state = model(x, fptt.detach_state(state))
        optimizer.zero_grad()
        loss = functional.cross_entropy(output.flatten(0, 1), y.flatten()) + 0 * regularizer.penalty()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    with regularizer.averaged():
        averaged = model(inputs)[0]
    figures: dict[str, Any] = {"losses": losses, "weights": list(model.parameters()), "averaged": averaged}
    figures["penalty"] = regularizer.penalty()
    return {name: bits_of(nest) for name, nest in {**figures, **averages_and_duals(regularizer)}.items()}


def stream_of_arrays() -> Bits:
    """Three lanes of a recording, cut and cut again, prefetched, with beginnings and a mask."""
    model = make_model()
    method = fptt.FPTT(model, adam(model), sequence(), chunk_length=3)
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(50, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(C, (50,), generator=generator)
    is_first, mask = (torch.rand(50, generator=generator) < part for part in (0.1, 0.8))
    chunks = fptt.ArrayChunks(inputs, targets, chunk_length=6, batch_size=B, is_first=is_first, mask=mask)
    with closing(fptt.prefetch(chunks)) as source:
        return bits_of_training(method, method.train_stream(source))


def stream_of_lanes() -> Bits:
    model = make_model("GRU")
    method = fptt.TBPTT(model, sgd(model), sequence(), num_chunks=1)
    inputs, targets = next(batches(per_step=True))
    sequences = [(inputs[:n, n % B], targets[:n, n % B]) for n in (3, 12, 5, 7, 1, 9)]
    return bits_of_training(method, method.train_stream(fptt.pack_lanes(sequences, batch_size=2, chunk_length=4)))


def stream_of_batches() -> Bits:
    model = make_model()
    method = fptt.FPTT(model, sgd(model), sequence(), num_chunks=2)
    source = (fptt.Batch(*batch, ragged()) for batch in batches(per_step=True))
    return bits_of_training(method, method.train_stream(source))


def online(max_delay: int) -> Bits:
    """Steps one by one and several at once; with labels late, if there is a delay."""
    model = make_model()
    method = fptt.FPTT(model, adam(model), sequence(), chunk_length=3)
    learner = fptt.OnlineLearner(method, classes=("a", "b", "c"), max_delay=max_delay, standardize=True)
    inputs, targets = next(batches(per_step=True))
    labels = ["abc"[number] for number in targets[:, 0].tolist()]
    answers: list[Any] = []
    for step in range(8):
        answers.append(list(learner.predict_proba_one(inputs[step, 0]).values()))
        learner.learn_one(inputs[step, 0], None if max_delay else labels[step])
        if max_delay and step >= 2:
            learner.learn_delayed(labels[step - 2], delay=3)
    answers.append(learner.predict_many(inputs[8:, 0]))
    learner.learn_many(inputs[8:, 0], labels[8:])
    learner.flush()
    answers.append(learner.predict_many(inputs[:, 1]))
    return {"answers": bits_of(answers), **bits_of_training(method, [])}


# -- runs of the command line ------------------------------------------------------------------------------------------

TINY = ["--hidden-size", "4", "--threads", "1", "--epochs", "1"]
DIGITS = ["--task", "digits", "--limit", "64", *TINY]


def command(*arguments: str) -> Bits:
    """Run a command in an empty folder, and return the bits of what it leaves."""
    with tempfile.TemporaryDirectory() as path:
        out = Path(path) / "out"
        run = [sys.executable, "-m", "fptt", *arguments, "--out", str(out)]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: {' '.join((done.stdout + done.stderr).split())[-300:]}")
        return bits_of_folder(out)


def bits_of_folder(folder: Path) -> Bits:
    """Return the bits of weights, tables and figures in a folder and those in it."""
    found: Bits = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            found |= {f"{name}: {key}": bits_of(tensor) for key, tensor in load_file(file).items()}
        elif file.suffix == ".pt":
            model = torch.load(file, weights_only=True)["model"]
            found |= {f"{name}: {key}": bits_of(tensor) for key, tensor in model.items()}
        elif file.suffix == ".csv":
            with file.open(newline="") as lines:
                rows = list(csv.DictReader(lines))
            found |= {f"{name}: {key}": bits_of([row[key] for row in rows]) for key in rows[0] if repeats(key)}
        elif file.name == "summary.json":
            summary = json.loads(file.read_text())
            found |= {f"{name}: {key}": repr(value) for key, value in figures_of(summary) if repeats(key)}
    return found


def figures_of(summary: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Return the numbers in a summary."""
    for key, value in summary.items():
        if isinstance(value, dict):
            yield from figures_of(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, value


def repeats(name: str) -> bool:
    """Tell whether a figure is the same in each run: neither time nor memory."""
    return not any(word in name for word in ("second", "memory", "bytes"))


def train_text() -> Bits:
    words = ("the", "cat", "saw", "a", "dog", "and", "ran", "home")
    text = " ".join(words[number * number % 37 % len(words)] for number in range(800))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        file.write_text(text)
        options = ["--length", "20", "--embedding-size", "3", "--batch-size", "8", "--num-chunks", "2"]
        return command("train", "--task", "text", "--data", str(file), *TINY, *options)


def stream(*options: str) -> Bits:
    """Stream made-up recordings in the place of those of HAPT."""
    generator = torch.Generator().manual_seed(4)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, HF_HOME=f"{folder}/cache"):
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        for split, lengths in (("train", (400, 300)), ("test", (200,))):
            labels = [torch.randint(13, (n // 10,), generator=generator).repeat_interleave(10) for n in lengths]
            signals = [torch.randn(n, 6, generator=generator) for n in lengths]
            columns = {"signal": [part.numpy() for part in signals], "label": [part.tolist() for part in labels]}
            Dataset.from_dict(columns).to_parquet(Path(folder) / f"{split}-00000-of-00001.parquet")
        return command("stream", "--data", folder, "--hidden-size", "4", "--chunk-length", "20", *options)


# -- the table of runs -------------------------------------------------------------------------------------------------

RUNS: dict[str, Callable[[], Bits]] = {
    "bptt": bptt,
    "bptt-3-losses": lambda: bptt(num_chunks=3),
    "bptt-skip": bptt_skip,
    "tbptt-eager": lambda: tbptt("eager"),
    "tbptt-is-first-mask": tbptt_is_first,
    "tbptt-batch-first": tbptt_batch_first,
    "tbptt-packed": tbptt_packed,
    "fptt-terminal-eager": lambda: fptt_terminal("eager"),
    "fptt-prior-eager": lambda: fptt_prior("eager"),
    "fptt-skip-eager": lambda: fptt_skip("eager"),
    "fptt-paper-coupled": lambda: fptt_form("paper", "coupled", alpha=0.3),
    "fptt-paper-decoupled": lambda: fptt_form("paper", "decoupled", alpha=0.6, beta=0.4),
    "fptt-released-coupled": lambda: fptt_form("released", "coupled", alpha=0.2, mu=2.0),
    "fptt-released-decoupled": lambda: fptt_form("released", "decoupled", alpha=0.25, beta=0.7),
    "fptt-recomputed": fptt_recomputed,
    "fptt-num-duals": fptt_num_duals,
    "regularizer-by-hand": regularizer_by_hand,
    "stream-arrays": stream_of_arrays,
    "stream-lanes": stream_of_lanes,
    "stream-batches": stream_of_batches,
    "online": lambda: online(0),
    "online-delay": lambda: online(4),
    "compiled-tbptt": lambda: tbptt("compiled"),
    "compiled-fptt-terminal": lambda: fptt_terminal("compiled"),
    "compiled-fptt-prior": lambda: fptt_prior("compiled"),
    "compiled-fptt-skip": lambda: fptt_skip("compiled"),
    "cli-train": lambda: command("train", *DIGITS, "--method", "fptt"),
    "cli-train-text": train_text,
    "cli-train-compiled": lambda: command("train", *DIGITS, "--engine", "compiled", "--readout-sizes", "6"),
    "cli-compare": lambda: command(
        "compare", *DIGITS, "--seeds", "2", "--methods", "bptt,fptt", "--budgets", "updates"
    ),
    "cli-stream": stream,
    "cli-stream-delay": lambda: stream("--delay", "30"),
}


def make(out: Path, patterns: list[str]) -> None:
    """Make the runs, tell how long each takes, and write their bits."""
    torch.set_num_threads(1)
    print(f"fptt in {Path(fptt.__file__).parent}")
    found: dict[str, Bits] = {}
    for name in chosen(RUNS, patterns):
        start = time.perf_counter()
        try:
            found[name] = RUNS[name]()
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{time.perf_counter() - start:6.1f} s  {name}  {found[name].get('error', '')}", flush=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def compare(paths: list[Path], patterns: list[str]) -> int:
    """Print which runs differ, and in what; return 1 if any does, or failed in both."""
    one, other = (json.loads(path.read_text()) for path in paths)
    names = chosen(one | other, patterns)
    bad = 0
    for name in names:
        first, second = one.get(name, {}), other.get(name, {})
        different = [key for key in first | second if first.get(key) != second.get(key) or key == "error"]
        bad += bool(different)
        for key in different:
            print(f"{name}: {key}: {first.get(key, 'missing')} -> {second.get(key, 'missing')}")
    print(f"{bad} of {len(names)} runs differ")
    return int(bad > 0)


def chosen(names: Iterable[str], patterns: list[str]) -> list[str]:
    return [name for name in names if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--compare", type=Path, nargs=2)
    parser.add_argument("--only", nargs="+", default=[], help="patterns of names of runs, such as 'compiled*'")
    options = parser.parse_args()
    if options.compare:
        return compare(options.compare, options.only)
    if options.out is None:
        parser.error("give OUT.json, or --compare A.json B.json")
    make(options.out, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
