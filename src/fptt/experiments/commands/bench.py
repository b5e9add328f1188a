"""The commands `fptt bench speed`, `spiking`, `memory` and `convergence`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Literal

import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console

from fptt.experiments.benchmarks.grid import (
    ENGINES,
    NUM_GATES,
    PRECISIONS,
    Grid,
    Spec,
    Workload,
    parse_chunks,
    parse_numbers,
)
from fptt.experiments.configs.checked import STRICT, Checked, Count, Seed, Width, Workers
from fptt.experiments.configs.lists import parse_names
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.machine import prepare_process

OVERVIEW = """\
fptt bench: what the methods cost on this machine, and where they converge to

  fptt bench speed          seconds of a batch: BPTT, TBPTT, FPTT, eager and compiled, beside a literal loop and a floor
  fptt bench spiking        seconds of a batch of a spiking network, an update a step, beside SpikingJelly's FPTT
  fptt bench memory         peak memory for sequences of up to a million steps, FPTT streaming beside BPTT
  fptt bench convergence    gradients along the way and at the weights, on two problems in float64

more: fptt bench COMMAND --help

first steps:
  fptt bench speed --quick
  fptt bench memory --quick
  fptt bench convergence --quick
"""

QUICK_COMPILED_STEPS, COMPILED_STEPS = 8, 32
"""The longest chunk that is compiled where its steps are written out, and not taken whole by one operator."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Benchmark(Checked):
    """The option of all benchmarks."""

    overwrite: bool = False
    """Replace the report of an earlier benchmark of this kind in the folder."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Speed(_Benchmark):
    """Measure how long each method takes for one batch.

    An LSTM of width 128 with a read-out of 256 reads random sequences of one number a step. All rows of a setting take
    turns in one process, so that what disturbs the machine disturbs all of them, and medians are reported: as seconds,
    and as ratios to BPTT, to FPTT's equations written down literally (a Python loop over the parameters, as in
    published code), and to a floor (the bare matrix products and the memory traffic of the updates). Every row says
    which kernel runs its layers: native, machine code of the library's own; cudnn; torch, the layers of torch.nn, with
    which BPTT and FPTT have a second row; or plain, cells written out for the compiler. The full grid takes an hour or
    two on two cores.

    fptt bench speed --quick                                              minutes: LSTM, T = 784, three rounds

    fptt bench speed --cells lstm --batch-sizes 128 --num-chunks 28,T     a part of the grid

    fptt bench speed --engines eager                                      without compiled steps
    """

    quick: bool = False
    """Measure less, in about three minutes on two cores; other options still apply."""
    out: Path = Path("out/bench")
    """Folder for speed.json, speed.md, time-against-K.png and, of several T, time-against-T.png."""
    repeats: Count | None = None
    """Rounds, after a warm-up; 5 by default, 3 with --quick."""
    threads: Workers | None = None
    """CPU threads; all cores by default."""
    batch_sizes: str = "1,16,128"
    """Sequences a batch."""
    num_chunks: str | None = None
    """K, with T for an update every time step; 10,28,112,T by default, 10,28,T with --quick."""
    sequence_lengths: str | None = None
    """T, time steps; 784,1568 by default, 784 with --quick."""
    cells: str | None = None
    """Recurrent layers; lstm,gru by default, lstm with --quick."""
    precisions: str | None = None
    """Of the products: float32,bfloat16 by default where the processor multiplies in bfloat16, float32 with --quick."""
    engines: str = "eager,compiled"
    """Executors of TBPTT and FPTT. The first batch of compiled rows takes seconds to minutes."""
    keep_memory: bool = False
    """Let the C library (glibc) keep all freed memory for the next batch, which it does not by default; BPTT gains
    most, up to half of its time."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    """Device."""
    seed: Seed = 0
    """Seed of weights and data."""

    def __call__(self, console: Console) -> None:
        """Measure, print and write."""
        repeats = self.repeats if self.repeats is not None else (3 if self.quick else 5)
        prepare_process(self.threads)  # before anything runs: worker threads inherit how they treat denormals
        from fptt.experiments.benchmarks.contestants import running_kernel
        from fptt.experiments.benchmarks.speed import SpeedBench
        from fptt.experiments.benchmarks.speed_report import draw_speed, save_speed, show_speed
        from fptt.experiments.training.build import has_bfloat16, make_fabric

        device = make_fabric(self.accelerator).device
        cells = parse_names("cells", self.cells or ("lstm" if self.quick else "lstm,gru"), tuple(NUM_GATES))
        default = "float32" if self.quick or not has_bfloat16(device) else "float32,bfloat16"
        precisions = parse_names("precisions", self.precisions or default, PRECISIONS)
        if "bfloat16" in precisions and not has_bfloat16(device):
            raise UserError("precisions must be float32 on a processor that does not multiply in bfloat16.")
        longest = QUICK_COMPILED_STEPS if self.quick else COMPILED_STEPS
        # an operator that takes chunks whole is compiled as quickly for long ones
        kernels = {
            running_kernel(Spec("fptt", "compiled", 1), Workload(cell, COMPILED_STEPS, 1, precision), device)
            for cell in cells
            for precision in precisions
        }
        grid = Grid(
            cells=cells,
            batch_sizes=parse_numbers("batch_sizes", self.batch_sizes),
            sequence_lengths=parse_numbers(
                "sequence_lengths", self.sequence_lengths or ("784" if self.quick else "784,1568")
            ),
            num_chunks=parse_chunks("num_chunks", self.num_chunks or ("10,28,T" if self.quick else "10,28,112,T")),
            engines=parse_names("engines", self.engines, ENGINES),
            precisions=precisions,
            longest_compiled=longest if "plain" in kernels else None,
        )
        _make_folder(self.out, "speed", overwrite=self.overwrite)
        bench = SpeedBench(grid, device, repeats=repeats, seed=self.seed, keep_memory=self.keep_memory)
        report = bench.run(console, lambda report: save_speed(report, self.out))
        show_speed(report, console)
        plots = draw_speed(report, self.out)
        say(console, f"rows: {self.out / 'speed.json'}\nplots: {', '.join(map(str, plots))}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spiking(_Benchmark):
    """Measure a spiking network that is updated at every step, beside SpikingJelly's own function for FPTT.

    Linear(1, H), leaky integrate-and-fire neurons, Linear(H, 10) on random sequences with a label at every step, K = T.
    All rows take turns in one process. The row of SpikingJelly, `fptt_online_training`, is left out with a note where
    the package cannot be imported; its update is not FPTT as printed (docs/method.md), and its cost is about that of
    `recomputed`: two passes an update.

    fptt bench spiking --engines eager    without compiled steps
    """

    out: Path = Path("out/bench")
    """Folder for spiking.json and spiking.md."""
    repeats: Count = 7
    """Rounds, after a warm-up."""
    threads: Workers | None = 1
    """CPU threads; None for all cores."""
    sequence_length: Count = 100
    """T, time steps and updates."""
    batch_size: Count = 64
    """Sequences a batch."""
    hidden_size: Width = 128
    """H, neurons."""
    engines: str = "eager,compiled"
    """Executors of TBPTT and FPTT."""
    seed: Seed = 0
    """Seed of weights and data."""

    def __call__(self, console: Console) -> None:
        """Measure, print and write."""
        prepare_process(self.threads)
        from fptt.experiments.benchmarks.spiking import SpikingBench
        from fptt.experiments.benchmarks.spiking_report import save_spiking, show_spiking

        engines = parse_names("engines", self.engines, ENGINES)
        _make_folder(self.out, "spiking", overwrite=self.overwrite)
        report = SpikingBench(
            self.sequence_length, self.batch_size, self.hidden_size, engines, self.repeats, self.seed
        ).run()
        save_spiking(report, self.out)
        show_spiking(report, console)
        say(console, f"rows: {self.out / 'spiking.json'}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Memory(_Benchmark):
    """Measure peak memory against the length of the sequence.

    An LSTM of width 128 predicts the next step of four noisy sines. The sequence lies in a file. FPTT streams it: ten
    chunks at a time are read, and the recurrent state is carried from one `train_batch` to the next, so that memory
    does not depend on T. BPTT needs the whole sequence at once. Every measurement runs in a process of its own.

    fptt bench memory --quick                             up to T = 100,000

    fptt bench memory --chunk-length 4 --engine compiled  short chunks, compiled
    """

    quick: bool = False
    """Sequences of up to 100,000 steps only."""
    out: Path = Path("out/bench")
    """Folder for memory.json, memory.md and memory-against-T.png."""
    sequence_lengths: str | None = None
    """T, time steps; 1000,10000,100000,1000000 by default, without the last one with --quick."""
    chunk_length: Count = 100
    """Longest chunk of FPTT, in time steps."""
    engine: Literal["eager", "compiled"] = "eager"
    """Executor of FPTT; its steps are compiled before anything is measured."""
    limit_gib: Annotated[float, Field(gt=0)] = 4.0  # infinity is no limit
    """Stop BPTT before the length at which its memory is predicted to be larger."""
    threads: Workers | None = None
    """CPU threads; all cores by default."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    """Device."""

    def __call__(self, console: Console) -> None:
        """Measure, print and write."""
        prepare_process(self.threads)
        from fptt.experiments.benchmarks.memory import MemoryBench
        from fptt.experiments.benchmarks.memory_report import save_memory, show_memory
        from fptt.experiments.training.build import make_fabric

        lengths = self.sequence_lengths or "1000,10000,100000" + ("" if self.quick else ",1000000")
        bench = MemoryBench(
            sorted(parse_numbers("sequence_lengths", lengths)),
            chunk_length=self.chunk_length,
            engine=self.engine,
            limit_bytes=self.limit_gib * 2**30,
            threads=self.threads,
            device=make_fabric(self.accelerator).device,
        )
        _make_folder(self.out, "memory", overwrite=self.overwrite)
        report = bench.run(console)
        show_memory(report, console)
        plot = save_memory(report, self.out)
        say(console, f"rows: {self.out / 'memory.json'}\nplot: {plot}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Convergence(_Benchmark):
    """Measure what becomes of the gradients of each method.

    One batch is learned again and again by plain gradient descent in float64: a linear regression, whose minimizer is
    known exactly, and an LSTM of eight units that has to remember for longer than a chunk. The theory of FPTT promises
    that the average of all gradients along the way vanishes, and it does, for TBPTT too. Beside it stands what the
    theory does not promise: the gradient of the mean loss at the weights, of chunks that are cut and by BPTT.

    fptt bench convergence --quick                       100 passes

    fptt bench convergence --out benchmarks --overwrite  the figure of the documentation
    """

    quick: bool = False
    """100 passes over the batch, unless --passes says otherwise."""
    passes: Annotated[int, Field(ge=10)] | None = None
    """N, at least 10; 1,000 by default."""
    out: Path = Path("out/bench")
    """Folder for convergence.json, convergence.md and convergence.png."""
    seed: Seed = 0
    """Seed of weights and data."""

    def __call__(self, console: Console) -> None:
        """Measure, print and write."""
        passes = self.passes if self.passes is not None else (100 if self.quick else 1000)
        prepare_process(1)
        from fptt.experiments.benchmarks.convergence import ConvergenceBench
        from fptt.experiments.benchmarks.convergence_report import save_convergence, show_convergence

        _make_folder(self.out, "convergence", overwrite=self.overwrite)
        report = ConvergenceBench(passes, seed=self.seed).run(console)
        show_convergence(report, console)
        plot = save_convergence(report, self.out)
        say(console, f"rows: {self.out / 'convergence.json'}\nplot: {plot}")


BENCHMARKS: dict[str, type[Speed | Spiking | Memory | Convergence]] = {
    "speed": Speed,
    "spiking": Spiking,
    "memory": Memory,
    "convergence": Convergence,
}


def parse(_: str, arguments: Sequence[str]) -> Callable[[Console], None]:
    """Return what the arguments of `fptt bench` ask for.

    Raises:
        UserError: If there is no such benchmark; lists those that exist.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        return lambda console: say(console, OVERVIEW)
    name = arguments[0]
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    kind = BENCHMARKS[name]
    return tyro.cli(kind, args=arguments[1:], prog=f"fptt bench {name}")  # pyright: ignore[reportReturnType]


def _make_folder(path: Path, name: str, *, overwrite: bool) -> None:
    """Make the folder of a report, before hours of measuring.

    Raises:
        UserError: If it cannot be made, or has such a report that may not be replaced.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):  # a folder that is there may be read-only
            pass
    except OSError as error:
        raise UserError(f"out {path} cannot be written: {error}.") from error
    found = next((file for file in (path / f"{name}.json", path / f"{name}.md") if file.exists()), None)
    if found is not None and not overwrite:
        raise UserError(f"out {path} has a {found.name} already: give another folder, or --overwrite.")
