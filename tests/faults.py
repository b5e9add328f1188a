"""Planted faults: each must turn the tests red, else the tests do not test. Run by `make faults`.

Every fault replaces one piece of text in a copy of the source; the tests of the mathematics then run on the copy.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Fault(NamedTuple):
    """What is wrong, where, the text that stands there now and with the fault, and the test that is to see it.

    Without one, all tests of the mathematics.
    """

    name: str
    file: str
    right: str
    wrong: str
    test: str = ""


PARALLEL = "tests/parallel/test_parallel.py"
BAD_NUMBERS = "tests/engine/test_bad_numbers.py"
CUDNN = "tests/engine/compiled/test_cudnn.py"

PROCESS_FAULTS = [
    Fault(
        "processes: parts weigh alike",
        "_parallel/replicas.py",
        "return loss * self.weight if",
        "return loss / 2 if",
        PARALLEL,
    ),
    Fault(
        "processes: updates of empty chunks in one only",
        "_parallel/replicas.py",
        "has_steps, are_bad = (self._sum(flags) > 0).tolist()",
        "pass",
        PARALLEL,
    ),
    Fault(
        "processes: duals not averaged",
        "_parallel/replicas.py",
        "*memory, *_floating(self.loss",
        "*_floating(self.loss",
        PARALLEL,
    ),
    Fault(
        "processes: compiled parts weigh alike",
        "_parallel/replicas.py",
        "list(gradients.values()), self.weight",
        "[], 1",
        PARALLEL,
    ),
    Fault(
        "processes: compiled prior stands still",
        "_engine/compiled/replicated_step.py",
        "self.step.risk.loss.observe(",
        "(",
        PARALLEL,
    ),
    Fault("processes: compiled steps not alike", "_parallel/replicas.py", "if not is_alike:", "if False:", PARALLEL),
    Fault("processes: prior learns alone", "_parallel/replicas.py", "module.total = self._sum", "pass", PARALLEL),
    Fault(
        "processes: a sync too late",
        "_parallel/replicas.py",
        "if self.num_unsynced == self.parallel.sync_every",
        "if self.num_unsynced > self.parallel.sync_every",
        PARALLEL,
    ),
    Fault("processes: begin apart", "_parallel/replicas.py", "collectives.broadcast_(", "list(", PARALLEL),
    Fault("processes: drift unseen", "_parallel/replicas.py", "if apart:", "if False:", PARALLEL),
    Fault(
        "skip: moments stay",
        "_engine/bad_numbers.py",
        "_put_back(self.optimizer.state[param], self.moments[param])",
        "pass",
        BAD_NUMBERS,
    ),
    Fault(
        "skip: random numbers are used up",
        "_engine/bad_numbers.py",
        "torch.set_rng_state(self.random)",
        "pass",
        BAD_NUMBERS,
    ),
    Fault("skip: duals stay", "_engine/bad_numbers.py", "self.regularizer.restore(self.memory)", "pass", BAD_NUMBERS),
    Fault(
        "skip: state goes on",
        "_methods/chunked.py",
        "return bad_losses([chunk], self.model)[0], [], state",
        "return bad_losses([chunk], self.model)[0], [], None",
        BAD_NUMBERS,
    ),
    Fault(
        "bad weights unseen",
        "_regularizer/step_hooks.py",
        "self.check_finite and not are_finite",
        "False and not are_finite",
        BAD_NUMBERS,
    ),
]

ENGINE_FAULTS = [
    Fault("engine: bias of a product lost", "_engine/compiled/products.py", "right.T) + bias", "right.T)"),
    Fault("cuDNN: no gradient from the state", "nn/cudnn.py", "to_hidden.contiguous(),", "to_hidden * 0,", CUDNN),
    Fault("cuDNN: despite plain cells", "nn/models.py", 'may_fuse=self.kernel == "fused"', "may_fuse=True", CUDNN),
    Fault("engine: small products by oneDNN", "_engine/compiled/products.py", "min(sides) >=", "max(sides) >="),
    Fault("engine: penalty added", "_engine/compiled/step.py", "param = param - penalty", "param = param + penalty"),
    Fault(
        "engine: penalty not in the gradient",
        "_engine/compiled/step.py",
        "gradient if penalty is None else gradient + penalty",
        "gradient",
    ),
    Fault(
        "engine: clips the loss gradient alone",
        "_engine/compiled/step.py",
        "norm = norm_of(gradients) if self.update.clips else norm",
        "pass",
    ),
    Fault("engine: dual not recomputed", "_engine/compiled/step.py", "if AVERAGE in own else {}", "if False else {}"),
    Fault("engine: updates of empty chunks", "_engine/compiled/step.py", "keep = alive & updates", "keep = alive"),
    Fault("engine: goes on after bad numbers", "_engine/compiled/step.py", "keep = alive & updates", "keep = updates"),
    Fault(
        "engine: prior does not learn", "_engine/compiled/step.py", "self._observe(output, inputs[1], module)", "pass"
    ),
    Fault(
        "engine: first step damped",
        "_engine/compiled/rules.py",
        "torch.where(steps == 1, 1.0",
        "torch.where(steps == 0, 1.0",
    ),
    Fault(
        "engine: Nesterov forgotten",
        "_engine/compiled/rules.py",
        'if self.flags["nesterov"] else buffer',
        "if False else buffer",
    ),
    Fault(
        "engine: no bias correction",
        "_engine/compiled/rules.py",
        "lr / (1 - beta1**steps)",
        "lr / (1 - beta1**(steps + 1))",
    ),
    Fault(
        "engine: decay coupled",
        "_engine/compiled/rules.py",
        'if self.flags["decoupled"]:\n            param',
        "if False:\n            param",
    ),
    Fault("engine: maximize forgotten", "_engine/compiled/rules.py", 'if self.flags["maximize"] else', "if False else"),
    Fault("engine: not centered", "_engine/compiled/rules.py", "square = square - mean * mean", "pass"),
    Fault("engine: steps lost on the way out", "_engine/compiled/flat.py", "step.fill_(self.num_steps)", "pass"),
    Fault(
        "engine: changes from outside not seen",
        "_engine/compiled/flat.py",
        "tensor is None or tensor.data_ptr() != view.data_ptr()",
        "tensor is None",
    ),
    Fault(
        "engine: usage of the first chunk for all",
        "_engine/compiled/layout.py",
        "if group.membership.used_in[number]",
        "if True",
    ),
    Fault(
        "engine: group's own strength",
        "_engine/compiled/flat.py",
        'self.membership.memory_group]["alpha"]',
        '0]["alpha"]',
    ),
    Fault(
        "engine: first step not checked",
        "_engine/compiled/engine.py",
        "check_first(run, arguments.flat(), found)",
        "pass",
    ),
    Fault("engine: groups never looked at again", "_engine/compiled/flat.py", "return id(group), *", "return 0, *"),
    Fault("engine: frozen statistics stand still", "_engine/compiled/engine.py", "moving = found.moving |", "moving ="),
    Fault("engine: goes on from bad numbers", "_engine/compiled/engine.py", "and not self._has_died(walk)", "and True"),
    Fault(
        "engine: structure of a part ignored",
        "_engine/compiled/constants.py",
        "return dict, tuple((key, ",
        "return dict, tuple((0, ",
    ),
    Fault(
        "engine: attributes taken as constant",
        "_engine/compiled/engine.py",
        "return (constants(self.risk), ",
        "return (",
    ),
    Fault(
        "engine: hidden state overlooked",
        "_engine/compiled/probe.py",
        "if attribute is not None:",
        "if False:",
    ),
]

STREAM_FAULTS = [
    Fault(
        "nothing begins anew", "_batches/segments.py", "state = _restart(model, segment, state, lanes[edge])", "pass"
    ),
    Fault("all lanes begin anew", "_batches/segments.py", "if lanes is None or state is None:", "if True:"),
    Fault("all begin at zeros", "_batches/segments.py", "initial = initial_state(model, inputs)", "initial = None"),
    Fault("beginnings of the first chunk", "_batches/segments.py", "step - end + length", "step"),
    Fault("state of a stream lost", "_batches/batch.py", "chunk.inputs.shape[batch_dim], result.state", "None, state"),
    Fault("two chunks held", "_batches/batch.py", "del item, chunk", "pass"),
    Fault("packed steps of another chunk", "_batches/lanes.py", "last - sequence.start)", "last - sequence.start + 1)"),
    Fault("packed lanes go on", "_batches/lanes.py", "] = first == sequence.start", "] = False"),
    Fault(
        "lanes wait for the chunk",
        "_batches/lanes.py",
        "heapq.heapreplace(self._free, (self._placed[-1].end",
        "heapq.heapreplace(self._free, (end",
    ),
    Fault(
        "packed sequences lost on resuming",
        "_batches/lanes.py",
        "yield _Placed(number, inputs",
        "_Placed(number, inputs",
    ),
    Fault(
        "lanes free too early on resuming",
        "_batches/lanes.py",
        'enumerate(state_dict["free"])',
        "enumerate([0] * self.batch_size)",
    ),
    Fault("padding counts", "_sequence.py", "[:, None] < lengths", "[:, None] <= lengths"),
    Fault("position not restored", "_batches/arrays.py", 'self._next = state_dict["chunk"]', "pass"),
    Fault("position of what is pulled ahead", "_batches/prefetch.py", "self._position = pulled.position", "pass"),
    Fault("pulls without a limit", "_batches/prefetch.py", "slots.acquire() and not", "not"),
    Fault("thread not ended", "_batches/prefetch.py", "self._stop.set()", "pass"),
]

ONLINE_FAULTS = [
    Fault("online: state of training lost", "_online/learner.py", "self._state = self._trainer.state", "pass"),
    Fault("online: stale answers", "_online/trainer.py", "self.forward.forget()", "pass"),
    Fault(
        "online: steps without a label count",
        "_online/trainer.py",
        "if None in targets else None",
        "if False else None",
    ),
    Fault(
        "online: steps without a label skipped",
        "_online/trainer.py",
        "self.state = self.forward.run(rows, self.state)[1]",
        "pass",
    ),
    Fault(
        "online: labels not awaited", "_online/waiting.py", "max(len(self) - self.max_delay, 0)", "self.chunk_length"
    ),
    Fault(
        "online: states exchanged",
        "_online/learner.py",
        "self._trainer.state = restored",
        "self._trainer.state = restored[::-1]",
    ),
    Fault(
        "online: features as they come", "_online/features.py", "[x[name] for name in self.names]", "list(x.values())"
    ),
    Fault("online: the user's memory kept", "_online/features.py", "return rows.clone()", "return rows"),
    Fault(
        "online: standardized by itself",
        "_online/scale.py",
        "mean, mean_square = totals[:-1]",
        "mean, mean_square = totals[1:]",
    ),
    Fault("online: answers with dropout", "_online/forward.py", "module.training = False", "pass"),
]

ABLATION_TESTS = "tests/experiments/studies/test_ablation.py::test_a_"
STREAM_TESTS = "tests/experiments/streams/test_stream_resume.py::test_"

EXPERIMENT_FAULTS = [
    Fault(
        "ablation: None makes no difference",
        "experiments/studies/ablation_axes.py",
        'return "none" if value is None else value',
        "return value",
        f"{ABLATION_TESTS}value_of_none_is_no_field_without_a_difference",
    ),
    Fault(
        "ablation: a momentum taken away",
        "experiments/studies/ablation.py",
        'changed.setdefault("momentum", 0.0)',
        'changed["momentum"] = 0.0',
        f"{ABLATION_TESTS}grid_with_a_momentum_that_an_optimizer_lacks_is_named",
    ),
    Fault(
        "stream: its recording begun again",
        "experiments/streams/stream.py",
        'int(place["start"])',
        "0",
        f"{STREAM_TESTS}a_killed_stream_goes_on_from_its_last_checkpoint_twice",
    ),
    Fault(
        "stream: weights of River's model lost",
        "experiments/streams/baselines.py",
        "self.regression.weights[label].update(weights)",
        "pass",
        f"{STREAM_TESTS}a_killed_stream_goes_on_from_its_last_checkpoint_twice",
    ),
    Fault(
        "stream: not saved when data vanish",
        "experiments/streams/stream.py",
        "            self.save()\n            raise",
        "            raise",
        f"{STREAM_TESTS}data_that_vanish_while_they_are_read_are_told_and_the_stream_goes_on_when_they_are_back",
    ),
]

FAULTS = [
    Fault("chrono: input gates open", "nn/initial.py", "layer, 0, -keeps)", "layer, 0, keeps)", "tests/nn/test_nn.py"),
    Fault(
        "sign of the dual in the penalty gradient",
        "_regularizer/recurrences.py",
        "- DUAL_WEIGHTS[form]",
        "+ DUAL_WEIGHTS[form]",
    ),
    Fault("½ of the paper's dual", "_regularizer/recurrences.py", '"paper": 0.5', '"paper": 1.0'),
    Fault(
        "½ in the paper's penalty",
        "_regularizer/recurrences.py",
        "return alpha / 2 * (offset",
        "return alpha * (offset",
    ),
    Fault("sign of the dual's step", "_regularizer/recurrences.py", "return dual - alpha", "return dual + alpha"),
    Fault("β/α turned over", "_regularizer/recurrences.py", "- (beta / alpha) * dual", "- (alpha / beta) * dual"),
    Fault(
        "β on the wrong side",
        "_regularizer/recurrences.py",
        "(1 - beta) * average + beta",
        "beta * average + (1 - beta)",
    ),
    Fault(
        "μ forgotten",
        "_regularizer/recurrences.py",
        "return mu * alpha * (param - average)",
        "return alpha * (param - average)",
    ),
    Fault("fast twin: α forgotten", "_regularizer/foreach.py", "mu * group.alpha", "mu"),
    Fault(
        "fast twin: old dual in the average",
        "_regularizer/foreach.py",
        "alpha=-beta / group.alpha",
        "alpha=beta / group.alpha",
    ),
    Fault("fast twin: sign of the dual", "_regularizer/foreach.py", "alpha=-group.alpha)", "alpha=group.alpha)"),
    Fault(
        "average advanced before dual",
        "_regularizer/regularizer.py",
        "foreach.advance_duals_(group)",
        "foreach.advance_averages_(group, beta=self.beta); foreach.advance_duals_(group); return",
    ),
    Fault(
        "average shares memory with the weight",
        "_regularizer/parameter_memory.py",
        "average = param.detach().clone()",
        "average = param.detach()",
    ),
    Fault(
        "decoupled penalty never applied",
        "_regularizer/regularizer.py",
        'if self.coupling == "decoupled":',
        "if False:",
    ),
    Fault(
        "coupled penalty never applied", "_regularizer/regularizer.py", 'if self.coupling == "coupled":', "if False:"
    ),
    Fault(
        "decoupled penalty of the weights after the step",
        "_regularizer/regularizer.py",
        "foreach.add_(group.params, penalty_gradients, sign=-1)",
        "foreach.add_(group.params, _foreach.penalty_gradients(group, form=self.form, mu=self.mu), sign=-1)",
    ),
    Fault(
        "dual not recomputed",
        "_regularizer/regularizer.py",
        'if self.previous_gradient == "recomputed":\n            torch',
        "if False:\n            torch",
    ),
    Fault("averages left in the model", "_regularizer/parameter_memory.py", "param.copy_(weight)", "pass"),
    Fault("averages never swapped in", "_regularizer/parameter_memory.py", "param.copy_(average)", "pass"),
    Fault("loading shares memory", "_regularizer/parameter_memory.py", ".to(param, copy=True)", ".to(param)"),
    Fault("average sees its own dual only", "_regularizer/regularizer.py", "dual.mean(0) for", "dual[self.turn] for"),
    Fault("every chunk has the first dual", "_methods/methods.py", "chunk.number % regularizer.num_duals", "0"),
    Fault(
        "clipping before the penalty",
        "_regularizer/step_hooks.py",
        "norm = gradient_norm(params) if self.max_norm is not None else norm",
        "pass",
    ),
    Fault(
        "update although the step was not made",
        "_regularizer/step_hooks.py",
        "self.regularizer.add_penalty_grad_()\n",
        "self.regularizer.add_penalty_grad_(); self.regularizer.update(); self.regularizer.add_penalty_grad_()\n",
    ),
    Fault(
        "closure called after the penalty",
        "_regularizer/step_hooks.py",
        "call = _closure_called(_Call(args, kwargs))",
        "call = _Call(args, kwargs)",
    ),
    Fault(
        "closure called again",
        "_regularizer/step_hooks.py",
        "called = _Called(closure())",
        "called = (closure(), closure)[1]",
    ),
    Fault(
        "hooks on a wrapper without any", "_regularizer/step_hooks.py", "optimizer = _running_hooks(optimizer)", "pass"
    ),
    Fault(
        "graph not cut between chunks",
        "_methods/chunked.py",
        "self._attempt(chunk, detach(state))",
        "self._attempt(chunk, state)",
    ),
    Fault(
        "BPTT cuts the graph",
        "_methods/methods.py",
        "output, loss, state = self._forward(chunk, state)\n            outputs",
        "output, loss, state = self._forward(chunk, detach(state))\n            outputs",
    ),
    Fault("dropout not replayed", "_methods/methods.py", "torch.set_rng_state(random_state)", "pass"),
    Fault(
        "state of the last batch lost",
        "_methods/chunked.py",
        "self._attempt(chunk, detach(state))",
        "self._attempt(chunk, detach(state) if chunk.number else None)",
    ),
    Fault(
        "gradients pile up",
        "_engine/learning.py",
        "self.optimizer.zero_grad()",
        "pass",
    ),
    Fault("updates of empty chunks", "_methods/chunked.py", "if chunk.has_steps else []", "if True else []"),
    Fault(
        "label weight k/K",
        "_losses/chunk_loss.py",
        "TerminalPart(targets, float(k + 1), float(len(lengths))",
        "TerminalPart(targets, float(k), float(len(lengths))",
    ),
    Fault(
        "label weight k + 1/K",
        "_losses/chunk_loss.py",
        "return part.position / (own.to(dtype) if isinstance(own, Tensor) else own)",
        "return part.position - 1 + 1 / (own.to(dtype) if isinstance(own, Tensor) else own)",
    ),
    Fault(
        "divergence averaged over classes",
        "_losses/priors.py",
        "return -(prior * output.log_softmax(-1)).sum(-1)",
        "return -(prior * output.log_softmax(-1)).mean(-1)",
    ),
    Fault(
        "divergence has the label's weight",
        "_losses/chunk_loss.py",
        "(1 - weight) * cross_entropy_to",
        "weight * cross_entropy_to",
    ),
    Fault("decay of the prior turned over", "_losses/priors.py", "means, 1 - self.decay", "means, self.decay"),
    Fault(
        "mean over the chunk, not the sequence",
        "_losses/chunk_loss.py",
        "total = counted.sum().clamp(min=1)",
        "total = counted[: lengths[0]].sum().clamp(min=1)",
    ),
    Fault("mask ignored", "_losses/chunk_loss.py", "values = torch.where(part.counted.flatten(), values, 0.0)", "pass"),
    Fault("last step instead of last real step", "_losses/chunk_loss.py", "if part.last is None:", "if True:"),
    Fault(
        "tiny remainder chunk",
        "_sequence.py",
        "return [base + 1] * remainder + [base] * (count - remainder)",
        "return [base] * count + [remainder] * bool(remainder)",
    ),
    Fault(
        "reset turned over",
        "_sequence.py",
        ".view(shape), fresh, tensor)",
        ".view(shape), tensor, fresh)",
    ),
    Fault("LSTM gates in another order", "nn/cells.py", "i, f, g, o = (x", "i, f, o, g = (x"),
    Fault(
        "GRU blends the wrong way",
        "nn/cells.py",
        "candidate + z * (state[0] - candidate)",
        "state[0] + z * (candidate - state[0])",
    ),
    Fault(
        "batch-first targets not turned",
        "_batches/cut.py",
        "targets = chunking.time_major(targets)",
        "pass",
    ),
    Fault("targets of a sequence turned", "_batches/cut.py", "if loss.per_step and", "if"),
    Fault(
        "recomputed gradient scaled",
        "_methods/methods.py",
        "self._forward(chunk, state)[1], chunk, Tensor.backward)",
        "self._forward(chunk, state)[1], chunk, self.backward)",
    ),
    Fault(
        "the optimizer's own alpha", "_regularizer/parameter_memory.py", 'group.get("fptt_alpha"', 'group.get("alpha"'
    ),
    Fault(
        "ignored steps count",
        "_losses/chunk_loss.py",
        "kept = (targets != self.ignore_index).flatten",
        "return mask; kept = (targets != self.ignore_index).flatten",
    ),
    Fault(
        "prior in the outputs' precision",
        "_losses/priors.py",
        "self.probabilities = probabilities = self.probabilities.to(output.device)",
        "self.probabilities = probabilities = self.probabilities.to(output)",
    ),
    *STREAM_FAULTS,
    *ENGINE_FAULTS,
    *PROCESS_FAULTS,
    *ONLINE_FAULTS,
    *EXPERIMENT_FAULTS,
]

NO_FAULT = Fault("none", "_regularizer/recurrences.py", "- DUAL_WEIGHTS[form]", "- DUAL_WEIGHTS[form]")


def main() -> int:
    """Plant faults in turn, tell which ones the tests miss, and return their number."""
    parser = argparse.ArgumentParser(description="Plant faults in copies of the source; every one must turn tests red.")
    parser.add_argument("part", nargs="?", default="", help="plant those only that have this in their names")
    part = parser.parse_args().part
    faults = [fault for fault in FAULTS if part in fault.name]
    if misplaced():
        sys.exit(f"these faults no longer fit the source: {', '.join(misplaced())}")
    if not part and is_caught(NO_FAULT):
        sys.exit("the tests are red without any fault: mend them first")
    caught = []
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for fault, was_caught in zip(faults, executor.map(is_caught, faults), strict=True):
            print(f"{'caught' if was_caught else 'MISSED'}  {fault.name}", flush=True)
            caught.append(was_caught)
    print(f"{sum(caught)} of {len(faults)} planted faults turn the tests red")
    return len(faults) - sum(caught)


def _nearest_first(fault: Fault) -> list[str]:
    """Return the tests in an order in which the fault is likely to be met early."""
    if fault.test:
        return [fault.test]
    files = sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    core = [f"tests/{name}" for name in files if name != "test_architecture.py"]  # it looks at the source as it is
    core.sort(key=lambda path: ("online" in path) != fault.file.startswith("_online"))
    engine = ["tests/engine/compiled"]
    return [*engine, *core] if fault.file.startswith("_engine") else [*core, *engine]


def misplaced() -> list[str]:
    """Return the faults whose text does not stand exactly once in its file."""
    texts = {fault.file: (ROOT / "src" / "fptt" / fault.file).read_text() for fault in FAULTS}
    return [fault.name for fault in FAULTS if texts[fault.file].count(fault.right) != 1]


def is_caught(fault: Fault) -> bool:
    """Tell whether the tests fail on a copy of the source with the fault."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        file = source / "fptt" / fault.file
        text = file.read_text()
        file.write_text(text.replace(fault.right, fault.wrong))
        chosen = ["-m", "not slow and not machine_code"]
        options = ["-x", "-q", "-p", "no:cacheprovider", *chosen]
        command = [sys.executable, "-m", "pytest", *options, *_nearest_first(fault)]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if result.returncode not in (0, 1):
            sys.exit(f"fault {fault.name!r}: pytest could not run\n{result.stdout}{result.stderr}")
        return result.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
