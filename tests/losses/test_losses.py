import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import fptt
from fptt._losses.elementwise import Elementwise
from fptt._sequence import Progress

LENGTHS = [4, 3, 3]


def mean_of_chunks(
    loss: fptt.ChunkLoss, output: Tensor, targets: Tensor, mask: Tensor | None, lengths: list[int]
) -> Any:
    parts = loss.split(targets, mask, lengths, output.shape[1])
    values = [loss(chunk, part) for chunk, part in zip(output.split(lengths), parts, strict=True)]
    return torch.stack(values).mean()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("lengths", [[10], LENGTHS, [1] * 10, [2, 8]], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_sequence_loss_weighs_every_real_step_alike_however_it_is_cut(lengths: list[int], masked: bool) -> None:
    output, targets = torch.randn(10, 4, 6, requires_grad=True), torch.randint(6, (10, 4))
    mask = torch.arange(10)[:, None] < torch.tensor([10, 3, 7, 1]) if masked else None
    real = torch.ones(10, 4, dtype=torch.bool) if mask is None else mask
    expected = functional.cross_entropy(output[real], targets[real])
    found = mean_of_chunks(fptt.SequenceLoss(functional.cross_entropy), output, targets, mask, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    one, other = (torch.autograd.grad(value, output)[0] for value in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", ["all", "masked", "of lanes"])
def test_the_sum_of_a_mean_in_half_precision_does_not_overflow(steps: str) -> None:
    """100,000 values: float16 ends at 65504."""
    output, targets = torch.ones(50_000, 2, 1).half(), torch.zeros(50_000, 2, 1).half()
    loss = fptt.SequenceLoss(functional.mse_loss)
    if steps == "of lanes":
        whole = Progress(*(torch.tensor([[number, number]]) for number in (1, 1, 50_000)))
        (part,) = loss.split_lanes(targets, None, [50_000], whole)
    else:
        mask = torch.ones(50_000, 2, dtype=torch.bool) if steps == "masked" else None
        (part,) = loss.split(targets, mask, [50_000], 2)
    assert loss(output, part).item() == pytest.approx(1.0)


def test_the_sum_over_samples_in_half_precision_does_not_overflow() -> None:
    loss = fptt.TerminalLoss(functional.mse_loss)
    (part,) = loss.split(torch.zeros(30_000, 1).half(), None, [1], 30_000)
    assert loss(torch.full((1, 30_000, 1), 2.0).half(), part).item() == pytest.approx(4.0)


def test_chunk_of_equal_length_is_its_own_mean() -> None:
    output, targets = torch.randn(9, 2, 3), torch.randn(9, 2, 3)
    loss = fptt.SequenceLoss(nn.MSELoss())
    for chunk, part in zip(output.split(3), loss.split(targets, None, [3, 3, 3], 2), strict=True):
        torch.testing.assert_close(loss(chunk, part), functional.mse_loss(chunk, part.targets))


def test_ignored_targets_are_not_real_steps() -> None:
    output, targets = torch.randn(10, 2, 5), torch.randint(5, (10, 2))
    targets[3:8] = -100
    targets[0, 1] = -100
    for function in (functional.cross_entropy, nn.CrossEntropyLoss()):
        found = mean_of_chunks(fptt.SequenceLoss(function), output, targets, None, LENGTHS)
        torch.testing.assert_close(found, functional.cross_entropy(output.flatten(0, 1), targets.flatten()))


def test_a_byte_is_no_ignored_label() -> None:
    """−100 is 156 as a byte, a class like any other of 256."""
    output, targets = torch.randn(4, 3, 256), torch.full((4, 3), 156, dtype=torch.uint8)
    targets[0] = 7
    mask = torch.arange(4)[:, None] < torch.tensor([4, 2, 3])
    steps = functools.partial(mean_of_chunks, fptt.SequenceLoss(functional.cross_entropy), output)
    plain = functional.cross_entropy(output.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(steps(targets, None, [3, 1]), plain)
    torch.testing.assert_close(steps(targets, mask, [3, 1]), functional.cross_entropy(output[mask], targets[mask]))
    last = fptt.TerminalLoss(functional.cross_entropy)
    expected = functional.cross_entropy(output[-1], targets[-1])
    torch.testing.assert_close(mean_of_chunks(last, output, targets[-1], None, [4]), expected)


def test_a_byte_that_is_the_ignored_label_is_ignored() -> None:
    output, targets = torch.randn(4, 3, 256), torch.full((4, 3), 156, dtype=torch.uint8)
    targets[0] = 255
    function = nn.CrossEntropyLoss(ignore_index=255)
    expected = function(output.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(mean_of_chunks(fptt.SequenceLoss(function), output, targets, None, [4]), expected)


def squared_unless_zero(output: Tensor, target: Tensor, ignore_index: int = 0) -> Tensor:
    """Return a loss of one's own that leaves it to the caller to drop what is to be ignored."""
    del ignore_index
    return (output.sum(-1) - target).square()


@pytest.mark.parametrize(
    ("function", "ignored", "dtype"),
    [
        (functional.cross_entropy, -100, torch.int64),
        (nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1), 0, torch.int64),
        (functools.partial(functional.nll_loss, ignore_index=2), 2, torch.int64),
        (nn.NLLLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])), -100, torch.int64),
        (functional.cross_entropy, None, torch.uint8),
        (squared_unless_zero, 0, torch.int64),
    ],
    ids=["cross_entropy", "label smoothing", "nll_loss", "weights", "bytes", "own"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_bad_outputs_at_steps_that_do_not_count_are_not_in_the_loss(
    function: Any, ignored: int | None, dtype: torch.dtype, masked: bool
) -> None:
    output = torch.randn(10, 3, 5).log_softmax(-1)
    targets = torch.randint(3, 5, (10, 3)).to(dtype)
    mask = torch.rand(10, 3) < 0.6 if masked else None
    real = torch.ones(10, 3, dtype=torch.bool) if mask is None else mask.clone()
    if ignored is not None:
        targets[4:6] = ignored
        real[4:6] = False
    bad = output.masked_fill(~real.unsqueeze(-1), torch.nan).requires_grad_()
    found = mean_of_chunks(fptt.SequenceLoss(function), bad, targets, mask, LENGTHS)
    good = output[real].requires_grad_()
    expected = Elementwise(function)(good, targets[real]).mean()
    torch.testing.assert_close(found, expected)
    of_bad, of_good = torch.autograd.grad(found, bad)[0], torch.autograd.grad(expected, good)[0]
    torch.testing.assert_close(of_bad[real], of_good)


@pytest.mark.parametrize(
    "function",
    [
        functional.l1_loss,
        nn.SmoothL1Loss(),
        nn.HuberLoss(reduction="none"),
        lambda output, target: (output - target) ** 2,
    ],
)
def test_any_loss_of_a_regression(function: Any) -> None:
    output, targets = torch.randn(10, 2, 3), torch.randn(10, 2, 3)
    mask = torch.rand(10, 2) < 0.6
    found = mean_of_chunks(fptt.SequenceLoss(function), output, targets, mask, LENGTHS)
    torch.testing.assert_close(found, function(output[mask], targets[mask]).mean())


def squared_log_ratio(output: Tensor, target: Tensor) -> Tensor:
    """Return a loss that no target of 0 has."""
    return (output - target.log()).square()


@pytest.mark.parametrize("padding", [torch.nan, 0.0, -1.0])
@pytest.mark.parametrize("function", [squared_log_ratio, functional.mse_loss, functional.cross_entropy])
def test_padding_of_targets_is_in_neither_loss_nor_gradient(function: Any, padding: float) -> None:
    """Nor where a real target is NaN itself, in the chunks without it."""
    output, targets = torch.randn(10, 2, 3, requires_grad=True), torch.rand(10, 2, 3) + 0.1
    mask = torch.rand(10, 2) < 0.6
    mask[0], mask[-1] = False, True
    targets[~mask] = padding
    loss, own = fptt.SequenceLoss(function), Elementwise(function)
    found = mean_of_chunks(loss, output, targets, mask, LENGTHS)
    expected = own(output[mask], targets[mask]).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, output)[0] for value in (found, expected)))
    first = mask.nonzero()[0]
    targets[tuple(first)] = torch.nan
    parts = loss.split(targets, mask, LENGTHS, 2)
    last = loss(output[7:], parts[-1])
    torch.testing.assert_close(last, own(output[7:][mask[7:]], targets[7:][mask[7:]]).sum() * 3 / mask.sum())
    assert torch.autograd.grad(last, output)[0].isfinite().all()


@pytest.mark.usefixtures("float64")
def test_terminal_loss_by_hand() -> None:
    """Logits (0, ln 3): P = (¼, ¾). Label 0: −ln ¼; uniform Q: −½ ln ¼ − ½ ln ¾."""
    output = torch.tensor([0.0, 3.0]).log().clamp(min=-50)[None, None].expand(6, 1, 2).clone()
    output[..., 0] = 0.0
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    parts = loss.split(torch.tensor([0]), None, [2, 2, 2], 1)
    label, prior = 1.3862943611198906, 0.8369882167858358
    for k, part in enumerate(parts):
        b = (k + 1) / 3
        expected = b * label + (1 - b) * prior
        assert loss(output[2 * k : 2 * k + 2], part).item() == pytest.approx(expected, rel=1e-12)


def test_terminal_loss_reads_the_last_step_of_the_chunk() -> None:
    output, targets = torch.randn(10, 3, 4), torch.tensor([0, 1, 2])
    loss = fptt.TerminalLoss(functional.cross_entropy)
    parts = loss.split(targets, None, LENGTHS, 3)
    for k, (last, part) in enumerate(zip([3, 6, 9], parts, strict=True)):
        expected = (k + 1) / 3 * functional.cross_entropy(output[last], targets)
        torch.testing.assert_close(loss(output[: last + 1], part), expected)


def test_terminal_loss_of_one_chunk_is_the_plain_loss() -> None:
    output, targets = torch.randn(5, 3, 1), torch.randn(3, 1)
    loss = fptt.TerminalLoss(functional.mse_loss)
    (part,) = loss.split(targets, None, [5], 3)
    assert torch.equal(loss(output, part), functional.mse_loss(output[-1], targets, reduction="none").flatten().mean())


@pytest.mark.usefixtures("float64")
def test_terminal_loss_of_ragged_sequences_is_that_of_each_alone() -> None:
    """Lengths 10, 4 and 6 in chunks 4 + 3 + 3: three, one and two chunks, b = 1 where each ends."""
    output, targets = torch.randn(10, 3, 5), torch.tensor([4, 0, 2])
    mask = torch.arange(10)[:, None] < torch.tensor([10, 4, 6])
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    parts = loss.split(targets, mask, LENGTHS, 3)
    found = [loss(chunk, part).item() for chunk, part in zip(output.split(LENGTHS), parts, strict=True)]

    def term(step: int, sample: int, b: float) -> float:
        log_p = output[step, sample].log_softmax(-1)
        return (-b * log_p[targets[sample]] - (1 - b) * log_p.mean()).item()

    expected = [
        (term(3, 0, 1 / 3) + term(3, 1, 1) + term(3, 2, 1 / 2)) / 3,
        (term(6, 0, 2 / 3) + term(5, 2, 1)) / 3,
        term(9, 0, 1) / 3,
    ]
    assert found == pytest.approx(expected, rel=1e-12)


def test_running_prior_by_hand() -> None:
    prior = fptt.RunningPrior(num_classes=2, decay=0.75)
    sure = torch.tensor([[0.0, 50.0], [0.0, 50.0], [50.0, 0.0]])
    prior.observe(sure, torch.tensor([1, 1, 1]), torch.tensor([True, True, False]))
    torch.testing.assert_close(prior.probabilities, torch.tensor([[0.5, 0.5], [0.375, 0.625]]))
    prior.observe(sure[2:], torch.tensor([1]), torch.tensor([True]))  # ¾ (⅜, ⅝) + ¼ (1, 0)
    torch.testing.assert_close(prior.probabilities[1], torch.tensor([0.53125, 0.46875]))


def test_running_prior_learns_from_ended_sequences_only() -> None:
    prior = fptt.RunningPrior(num_classes=3, decay=0.5)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence=prior)
    output, targets = torch.randn(10, 2, 3), torch.tensor([0, 2])
    parts = loss.split(targets, None, LENGTHS, 2)
    for chunk, part in zip(output.split(LENGTHS)[:2], parts, strict=False):
        loss.observe(chunk, part)
    assert torch.equal(prior.probabilities, torch.full((3, 3), 1 / 3))
    loss.observe(output[7:], parts[2])
    expected = 0.5 / 3 + 0.5 * output[9].softmax(-1)
    torch.testing.assert_close(prior.probabilities[[0, 2]], expected)
    assert torch.equal(prior.probabilities[1], torch.full((3,), 1 / 3))
    other = fptt.TerminalLoss(functional.cross_entropy, divergence=fptt.RunningPrior(3))
    other.load_state_dict(loss.state_dict())
    b = 1 / 3
    log_p = output[3].log_softmax(-1)
    expected_loss = (
        b * functional.cross_entropy(output[3], targets)
        - (1 - b) * (prior.probabilities[targets] * log_p).sum(-1).mean()
    )
    torch.testing.assert_close(other(output[:4], parts[0]), expected_loss)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fptt.TerminalLoss(nn.CrossEntropyLoss(reduction="sum")), ValueError, "got 'sum'"),
        (lambda: fptt.SequenceLoss(nn.KLDivLoss(reduction="batchmean")), ValueError, "got 'batchmean'"),
        (lambda: fptt.TerminalLoss(functional.mse_loss, 0.5), ValueError, "divergence must be"),  # pyright: ignore
        (lambda: fptt.TerminalLoss("cross_entropy"), TypeError, "function must be a loss"),  # pyright: ignore
        (lambda: fptt.TerminalLoss(functional.mse_loss, "flat"), ValueError, "divergence must be"),
        *(
            (functools.partial(fptt.TerminalLoss, function, divergence), ValueError, f"must be None with {name}, whose")
            for divergence in ("uniform", fptt.RunningPrior(3))
            for function, name in (
                (functional.mse_loss, "mse_loss"),
                (nn.MSELoss(), "MSELoss"),
                (functools.partial(functional.huber_loss, delta=0.5), "huber_loss"),
                (nn.BCEWithLogitsLoss(), "BCEWithLogitsLoss"),
            )
        ),
        (lambda: fptt.SequenceLoss(nn.MSELoss), TypeError, r"got the class MSELoss: give MSELoss\(\)"),  # pyright: ignore
        (lambda: fptt.TerminalLoss(nn.MSELoss, "uniform"), TypeError, "got the class MSELoss"),  # pyright: ignore
        (
            lambda: fptt.TerminalLoss(functools.partial(nn.CrossEntropyLoss, label_smoothing=0.1)),  # pyright: ignore
            TypeError,
            "function must be a loss, got the class CrossEntropyLoss",
        ),
        (lambda: fptt.RunningPrior(1), ValueError, "num_classes"),
        (lambda: fptt.RunningPrior(3, decay=1.0), ValueError, "decay"),
    ],
)
def test_bad_settings_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "function",
    [
        *(functional.soft_margin_loss, functional.multilabel_soft_margin_loss, functional.multilabel_margin_loss),
        *(functional.multi_margin_loss, functional.hinge_embedding_loss, functional.gaussian_nll_loss),
        *(nn.SoftMarginLoss(), nn.MultiLabelSoftMarginLoss(), nn.MultiLabelMarginLoss(), nn.MultiMarginLoss()),
    ],
)
def test_a_divergence_needs_a_loss_under_a_softmax(function: Any) -> None:
    with pytest.raises(ValueError, match=r"divergence must be None with .*oss, whose outputs are no logits"):
        fptt.TerminalLoss(function, "uniform")
    assert fptt.TerminalLoss(function).prior is None


def test_what_the_targets_of_a_loss_of_torch_are() -> None:
    """Labels of classes, (N,), or anything in the shape of the outputs, (N, C)."""
    output, labels, marks = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.tensor([1.0, -1.0, 1.0]).repeat(4, 1)
    for function in (functional.cross_entropy, nn.NLLLoss(), nn.MultiMarginLoss(), functional.multi_margin_loss):
        loss = Elementwise(function)
        assert not loss.is_of_numbers
        torch.testing.assert_close(loss(output, labels).mean(), function(output, labels))
    for function, targets in (
        (nn.SoftMarginLoss(), marks),
        (functional.hinge_embedding_loss, marks),
        (nn.MultiLabelSoftMarginLoss(), marks.clamp(min=0)),
        (functional.multilabel_margin_loss, torch.tensor([[2, -1, 0]]).repeat(4, 1)),
        (functools.partial(functional.kl_div, reduction="none"), marks.softmax(-1)),
    ):
        loss = Elementwise(function)
        assert not loss.is_of_numbers
        torch.testing.assert_close(loss(output, targets).mean(), function(output, targets).mean())
        with pytest.raises(ValueError, match="shape of the outputs"):
            loss(output, labels)
    assert all(Elementwise(own).is_of_numbers for own in (nn.L1Loss(), functools.partial(functional.huber_loss)))


def test_a_regression_target_of_another_shape_is_not_broadcast() -> None:
    loss = fptt.TerminalLoss(functional.mse_loss)
    (part,) = loss.split(torch.zeros(3), None, [5], 3)
    with pytest.raises(ValueError, match="shape of the outputs"):
        loss(torch.zeros(5, 3, 1), part)


def test_whole_targets_of_a_regression_are_not_broadcast() -> None:
    for loss, targets, lengths in (
        (fptt.TerminalLoss(functional.mse_loss), torch.ones(3, dtype=torch.long), [5]),
        (fptt.SequenceLoss(functional.mse_loss), torch.ones(5, 3, dtype=torch.long), [5]),
    ):
        (part,) = loss.split(targets, None, lengths, 3)
        for size in (1, 3):  # (3, 3) and (3,) would be broadcast without a warning
            with pytest.raises(ValueError, match="shape of the outputs"):
                loss(torch.zeros(5, 3, size), part)


def test_whole_targets_of_a_regression_in_the_shape_of_the_outputs_are_numbers() -> None:
    output, counts = torch.randn(5, 3, 2), torch.randint(4, (3, 2))
    loss = fptt.TerminalLoss(nn.PoissonNLLLoss())
    (part,) = loss.split(counts, None, [5], 3)
    torch.testing.assert_close(loss(output, part), functional.poisson_nll_loss(output[-1], counts))


@pytest.mark.parametrize("shape", [(4, 4), (3,), (3, 5, 4), (3, 1, 4)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_that_are_no_steps_of_the_batch_are_named(shape: tuple[int, ...], masked: bool) -> None:
    """(B, C) instead of (T_k, B, C) would be read as four steps of four samples."""
    loss = fptt.TerminalLoss(functional.mse_loss)
    mask = torch.ones(3, 4, dtype=torch.bool) if masked else None
    (part,) = loss.split(torch.zeros(4), mask, [3], 4)
    with pytest.raises(ValueError, match=r"must return outputs \(T_k, B, …\) with T_k, B = \(3, 4\)"):
        loss(torch.zeros(shape), part)
    for steps in (1, 3) if mask is None else (3,):
        assert loss(torch.ones(steps, 4), part).item() == 1


def test_a_divergence_needs_one_label_a_sample() -> None:
    """Classes are the last dim of the outputs there, and the second one of outputs for several labels."""
    loss = fptt.TerminalLoss(functional.cross_entropy, "uniform")
    (part, _) = loss.split(torch.zeros(3, 4, dtype=torch.long), None, [1, 1], 3)
    with pytest.raises(ValueError, match=r"divergence needs one label a sample, outputs \(B, C\), got \(3, 3, 4\)"):
        loss(torch.zeros(1, 3, 3, 4), part)


def test_several_targets_a_step() -> None:
    output, targets = torch.randn(6, 2, 4, 3), torch.randint(4, (6, 2, 3))
    found = mean_of_chunks(fptt.SequenceLoss(functional.cross_entropy), output, targets, None, [4, 2])
    torch.testing.assert_close(found, functional.cross_entropy(output.flatten(0, 1), targets.flatten(0, 1)))


def test_a_step_with_one_of_several_targets_counts() -> None:
    output, targets = torch.randn(6, 2, 4, 3), torch.randint(4, (6, 2, 3))
    targets[1, 0, 2] = targets[4, 1, 0] = -100
    targets[2, 1] = -100
    loss = fptt.SequenceLoss(functional.cross_entropy)
    (part,) = loss.split(targets, None, [6], 2)
    assert part.counted is not None
    expected = torch.ones(6, 2, dtype=torch.bool)
    expected[2, 1] = False
    assert torch.equal(part.counted, expected)
    for chosen in (None, torch.arange(6)[:, None] < torch.tensor([6, 3])):
        real = torch.ones(6, 2, dtype=torch.bool) if chosen is None else chosen
        found = mean_of_chunks(loss, output, targets, chosen, [4, 2])
        torch.testing.assert_close(found, functional.cross_entropy(output[real], targets[real]))


@pytest.mark.parametrize("make", [fptt.SequenceLoss, fptt.TerminalLoss])
def test_weights_of_classes_multiply_terms_and_leave_their_number(make: Any) -> None:
    weight = torch.tensor([1.0, 4.0, 0.25])
    output, targets = torch.randn(6, 2, 3), torch.randint(3, (6, 2))
    targets, last = (targets, output) if make is fptt.SequenceLoss else (targets[0], output[-1])
    loss = make(functools.partial(functional.cross_entropy, weight=weight))
    (part,) = loss.split(targets, None, [6], 2)
    plain = functional.cross_entropy(last.reshape(-1, 3), targets.flatten(), reduction="none")
    torch.testing.assert_close(loss(output, part), (weight[targets.flatten()] * plain).mean())
    torch.testing.assert_close(make(nn.CrossEntropyLoss(weight=weight))(output, part), loss(output, part))


def test_a_sequence_silent_in_the_middle_has_its_weights_still() -> None:
    """Three chunks, the second wholly masked for sequence 1: b is 1/3, –, 1 there, and nothing at the silence."""
    output, targets = torch.randn(6, 2, 4), torch.tensor([0, 1])
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[2:4, 1] = False
    loss = fptt.TerminalLoss(functional.cross_entropy)
    parts = loss.split(targets, mask, [2, 2, 2], 2)
    found = [loss(chunk, part) for chunk, part in zip(output.split(2), parts, strict=True)]
    terms = functional.cross_entropy(output[1::2].flatten(0, 1), targets.repeat(3), reduction="none").view(3, 2)
    b = torch.tensor([[1 / 3, 1 / 3], [2 / 3, 0], [1, 1]])
    torch.testing.assert_close(torch.stack(found), (b * terms).sum(1) / 2)


def test_labels_that_are_no_whole_numbers_are_named() -> None:
    for function, name in ((functional.cross_entropy, "cross_entropy"), (nn.CrossEntropyLoss(), "CrossEntropyLoss")):
        for dtype in (torch.float32, torch.int32):
            loss = fptt.TerminalLoss(function)
            (part,) = loss.split(torch.zeros(3, dtype=dtype), None, [5], 3)
            with pytest.raises(ValueError, match=f"whole labels, torch.int64, for {name}, got {dtype}"):
                loss(torch.zeros(5, 3, 4), part)


def test_a_running_prior_of_several_processes_is_that_of_their_whole_batch() -> None:
    priors = [fptt.RunningPrior(3, decay=0.5) for _ in range(3)]
    output, labels = torch.randn(6, 3), torch.tensor([0, 1, 1, 1, 0, 2])
    ended = torch.ones(6, dtype=torch.bool)
    losses = [fptt.TerminalLoss(functional.cross_entropy, prior) for prior in priors]
    messages: list[Tensor] = []
    halves = [slice(0, 2), slice(2, 6)]
    for half in halves:  # each gives its message, and takes the sum in a second round
        fptt.RunningPrior(3).observe(output[half], labels[half], ended[half], lambda own: messages.append(own) or own)
    priors[0].observe(output, labels, ended)
    for half, loss in zip(halves, losses[1:], strict=True):
        (part,) = loss.split(labels[half], None, [1], len(labels[half]))
        loss.observe(output[None, half], part, lambda _: messages[0] + messages[1])
    for prior in priors[1:]:
        torch.testing.assert_close(prior.probabilities, priors[0].probabilities)


def test_ignored_labels_of_sequences_do_not_count() -> None:
    output, targets = torch.randn(5, 3, 4), torch.tensor([2, -100, 0])
    prior = fptt.RunningPrior(4, decay=0.5)
    loss = fptt.TerminalLoss(functional.cross_entropy, prior)
    (part,) = loss.split(targets, None, [5], 3)
    torch.testing.assert_close(loss(output, part), functional.cross_entropy(output[-1], targets))
    loss.observe(output, part)
    torch.testing.assert_close(prior.probabilities[0], 0.125 + 0.5 * output[-1, 2].softmax(-1))
    mask = torch.arange(5)[:, None] < torch.tensor([5, 5, 2])
    (part,) = loss.split(targets, mask, [5], 3)
    expected = functional.cross_entropy(torch.stack([output[4, 0], output[1, 2]]), targets[[0, 2]])
    torch.testing.assert_close(loss(output, part), expected)


def test_a_sequence_with_one_of_several_labels_counts() -> None:
    output, targets = torch.randn(5, 4, 6, 3), torch.randint(6, (4, 3))
    targets[1] = -100
    targets[3, 0] = -100
    loss = fptt.TerminalLoss(functional.cross_entropy)
    (part,) = loss.split(targets, None, [5], 4)
    assert part.counted is not None
    assert part.counted.tolist() == [True, False, True, True]
    torch.testing.assert_close(loss(output, part), functional.cross_entropy(output[-1], targets))


def test_probabilities_of_classes_have_a_divergence_under_a_mask() -> None:
    output, targets = torch.randn(5, 3, 4), torch.rand(3, 4).softmax(-1)
    mask = torch.arange(5)[:, None] < torch.tensor([5, 2, 5])
    loss = fptt.TerminalLoss(functional.cross_entropy, "uniform")
    (part,) = loss.split(targets, mask, [5], 3)
    last = torch.stack([output[4, 0], output[1, 1], output[4, 2]])
    torch.testing.assert_close(loss(output, part), functional.cross_entropy(last, targets))


def test_a_mask_does_not_round_the_weight_of_the_label_in_half_precision() -> None:
    """b = (k + 1)/700 near 1, whose 1 − b would be 0 in bfloat16."""
    outputs, targets = torch.randn(700, 3, 4).bfloat16(), torch.tensor([0, 3, 1])
    loss = fptt.TerminalLoss(functional.cross_entropy)
    parts = loss.split(targets, torch.ones(700, 3, dtype=torch.bool), [1] * 700, 3)
    for k, (output, part) in enumerate(zip(outputs.split(1), parts, strict=True)):
        values = functional.cross_entropy(output[0], targets, reduction="none").float()
        torch.testing.assert_close(loss(output, part), (k + 1) / 700 * values.mean(), rtol=1e-6, atol=0)


def test_running_prior_keeps_its_precision_beside_bfloat16_outputs() -> None:
    prior = fptt.RunningPrior(2)
    output = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    for _ in range(500):
        prior.observe(output, torch.tensor([0]), torch.tensor([True]))
    assert prior.probabilities.dtype == torch.float32
    torch.testing.assert_close(prior.probabilities[0], torch.tensor([0.2705, 0.7295]), rtol=0, atol=2e-3)
    assert prior(output, torch.tensor([0])).dtype == torch.bfloat16


def test_a_running_prior_keeps_its_precision_under_autocast() -> None:
    free, cast = fptt.RunningPrior(3, decay=0.5), fptt.RunningPrior(3, decay=0.5)
    output, labels, ended = torch.randn(8, 3), torch.arange(8) % 3, torch.ones(8, dtype=torch.bool)
    free.observe(output, labels, ended)
    with torch.autocast("cpu", torch.bfloat16):
        cast.observe(output, labels, ended)
    assert torch.equal(cast.probabilities, free.probabilities)


def test_a_running_prior_sees_no_nan_of_a_sequence_that_goes_on() -> None:
    prior, alone = fptt.RunningPrior(3, decay=0.5), fptt.RunningPrior(3, decay=0.5)
    output, labels = torch.randn(2, 3), torch.tensor([0, 2])
    alone.observe(output[:1], labels[:1], torch.tensor([True]))
    output[1] = torch.nan
    prior.observe(output, labels, torch.tensor([True, False]))
    torch.testing.assert_close(prior.probabilities, alone.probabilities)


def test_a_running_prior_sums_in_a_fixed_order_on_a_gpu() -> None:
    """Without those that `use_deterministic_algorithms` names: their sums depend on which thread comes first."""
    called: set[str] = set()

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func.overloadpacket.__name__)
            return func(*args, **kwargs or {})

    with Recorded():
        fptt.RunningPrior(3).observe(torch.randn(4, 3), torch.tensor([0, 1, 1, 2]), torch.ones(4, dtype=torch.bool))
    assert "mm" in called
    assert not {name for name in called if name.startswith(("index_add", "index_put", "scatter"))}


def test_a_running_prior_takes_labels_of_bytes() -> None:
    """As indices: a tensor of uint8 in brackets would be a mask."""
    wide, narrow = fptt.RunningPrior(4, decay=0.5), fptt.RunningPrior(4, decay=0.5)
    outputs, labels = torch.randn(4, 4), torch.tensor([3, 2, 1, 1])
    for prior, own in ((wide, labels), (narrow, labels.to(torch.uint8))):
        prior.observe(outputs, own, torch.ones(4, dtype=torch.bool))
    assert torch.equal(narrow.probabilities, wide.probabilities)
    assert torch.equal(narrow(outputs, labels.to(torch.uint8)), wide(outputs, labels))


def test_priors_and_outputs_that_do_not_fit_are_named() -> None:
    for divergence, size, message in ((fptt.RunningPrior(10), 4, "RunningPrior of 10"), ("uniform", 1, "at least 2")):
        loss = fptt.TerminalLoss(functional.cross_entropy, divergence)  # of probabilities, in the outputs' shape
        (part,) = loss.split(torch.zeros(3, size), None, [5], 3)
        with pytest.raises(ValueError, match=message):
            loss(torch.zeros(5, 3, size), part)


@pytest.mark.parametrize("shape", [(5, 3), (1, 3)], ids=str)
@pytest.mark.parametrize(
    ("function", "divergence", "targets"),
    [
        (functional.cross_entropy, None, torch.tensor([0, 1, 2])),
        (nn.NLLLoss(), None, torch.tensor([0, 1, 2])),
        (lambda output, target: (output - target).square(), "uniform", torch.zeros(3)),
        (functional.mse_loss, None, torch.zeros(3, 5)),
    ],
)
def test_outputs_of_the_last_step_without_a_time_dimension_are_refused_whatever_their_number(
    shape: tuple[int, int], function: Any, divergence: Any, targets: Tensor
) -> None:
    """Batch-first, (B, C) comes as (C, B), which has the shape of one number a step where C = T_k."""
    loss = fptt.TerminalLoss(function, divergence)
    (part,) = loss.split(targets, None, [5], 3)
    with pytest.raises(ValueError, match=r"must return outputs \(T_k, B, C, …\) with .* keeps its time dimension"):
        loss(torch.zeros(shape), part)


def test_one_number_a_step_needs_no_dimension_of_its_own() -> None:
    loss = fptt.TerminalLoss(functional.mse_loss)
    output, targets = torch.randn(5, 3), torch.randn(3)
    (part,) = loss.split(targets, None, [5], 3)
    torch.testing.assert_close(loss(output, part), functional.mse_loss(output[-1], targets))


def test_a_mask_needs_the_outputs_of_all_steps() -> None:
    loss = fptt.TerminalLoss(functional.cross_entropy)
    mask = torch.arange(5)[:, None] < torch.tensor([5, 3, 2])
    (part,) = loss.split(torch.tensor([0, 1, 2]), mask, [5], 3)
    with pytest.raises(ValueError, match="last_only=False"):
        loss(torch.zeros(1, 3, 4), part)


def test_a_reduced_loss_of_ones_own_is_refused() -> None:
    loss = fptt.TerminalLoss(lambda output, target: (output - target).square().mean())
    (part,) = loss.split(torch.zeros(3, 1), None, [5], 3)
    with pytest.raises(ValueError, match="one value per element"):
        loss(torch.zeros(5, 3, 1), part)


@pytest.mark.parametrize(
    "found", [(torch.zeros(3), 1), [torch.zeros(3)], 0.5, None], ids=lambda own: type(own).__name__
)
def test_a_loss_that_returns_no_tensor_is_named(found: Any) -> None:
    loss = fptt.TerminalLoss(lambda output, target: found)  # noqa: ARG005
    (part,) = loss.split(torch.zeros(3), None, [5], 3)
    message = (
        f"function must return a tensor with one value per element, and nothing else, got a {type(found).__name__}"
    )
    with pytest.raises(TypeError, match=message):
        loss(torch.zeros(5, 3), part)


RANGE = r"targets must be labels in 0 … C − 1 = 3, with C outputs .*, got labels from {} to {}\.$"
SHAPE = r"targets must be a label for each output, .*: got {} for {} per element, which needs {}\.$"


@pytest.mark.parametrize("function", [functional.cross_entropy, nn.NLLLoss()], ids=["function", "module"])
@pytest.mark.parametrize(
    ("shape", "targets", "message"),
    [
        ((5, 3, 4), torch.tensor([1, 4, 2]), RANGE.format(1, 4)),
        ((5, 3, 4), torch.tensor([-1, -100, 0]), RANGE.format(-1, 0)),
        ((5, 3, 4), torch.tensor([[1], [2], [3]]), SHAPE.format(r"\(1,\)", r"\(4,\)", r"\(\)")),
        ((5, 3, 4), torch.ones(3, 5).long(), SHAPE.format(r"\(5,\)", r"\(4,\)", r"\(\)")),
        ((5, 3, 4), torch.ones(3, 4).long(), SHAPE.format(r"\(4,\)", r"\(4,\)", r"\(\)")),
        ((5, 3, 4, 2), torch.ones(3).long(), SHAPE.format(r"\(\)", r"\(4, 2\)", r"\(2,\)")),
    ],
)
def test_labels_that_torch_refuses_are_explained(function: Any, shape: Any, targets: Tensor, message: str) -> None:
    loss = fptt.TerminalLoss(function)
    (part,) = loss.split(targets, None, [5], 3)
    with pytest.raises(ValueError, match=message) as caught:
        loss(torch.zeros(shape), part)
    assert isinstance(caught.value.__cause__, IndexError | RuntimeError | ValueError)


def test_labels_of_steps_that_torch_refuses_are_explained() -> None:
    loss = fptt.SequenceLoss(functional.cross_entropy)
    for targets, message in (
        (torch.full((5, 3), 4), RANGE.format(4, 4)),
        (torch.zeros(5, 3, 1).long(), SHAPE.format(r"\(1,\)", r"\(4,\)", r"\(\)")),
    ):
        (part,) = loss.split(targets, None, [5], 3)
        with pytest.raises(ValueError, match=message):
            loss(torch.zeros(5, 3, 4), part)


def test_what_is_not_the_fault_of_labels_is_left_to_torch() -> None:
    loss = fptt.TerminalLoss(nn.CrossEntropyLoss(weight=torch.ones(3)))
    (part,) = loss.split(torch.tensor([0, 3, -100]), None, [5], 3)
    with pytest.raises(RuntimeError, match="weight tensor"):
        loss(torch.zeros(5, 3, 4), part)


@pytest.mark.parametrize("make", [fptt.SequenceLoss, fptt.TerminalLoss])
def test_weights_of_classes_of_another_dtype_are_named(make: Any) -> None:
    """As NumPy makes them."""
    weight = torch.ones(4, dtype=torch.float64)
    for function, name in (
        (nn.CrossEntropyLoss(weight=weight), "CrossEntropyLoss"),
        (functools.partial(functional.cross_entropy, weight=weight), "cross_entropy"),
        (nn.MultiMarginLoss(weight=weight), "MultiMarginLoss"),
    ):
        loss = make(function)
        (part,) = loss.split(torch.ones((5, 3) if loss.per_step else 3, dtype=torch.long), None, [5], 3)
        message = rf"weight of {name} must have the dtype of the outputs, torch\.float32, got torch\.float64"
        with pytest.raises(ValueError, match=message):
            loss(torch.zeros(5, 3, 4), part)
        assert loss(torch.zeros(5, 3, 4, dtype=torch.float64), part) > 0


def test_losses_pickle() -> None:
    loss = fptt.TerminalLoss(functools.partial(functional.cross_entropy, label_smoothing=0.1), "uniform")
    copied = pickle.loads(pickle.dumps(loss))
    output, (part,) = torch.randn(5, 3, 4), loss.split(torch.tensor([0, 1, 2]), None, [5], 3)
    assert torch.equal(copied(output, part), loss(output, part))


@pytest.mark.parametrize(
    "function",
    [
        functional.binary_cross_entropy_with_logits,
        nn.BCEWithLogitsLoss(),
        lambda output, target: functional.binary_cross_entropy_with_logits(output, target, reduction="none"),
    ],
    ids=["function", "module", "own"],
)
@pytest.mark.parametrize("loss", [fptt.SequenceLoss, fptt.TerminalLoss])
def test_targets_of_another_dtype_are_named(function: Any, loss: Any) -> None:
    own = loss(function)
    shape = (2, 3, 1) if own.per_step else (3, 1)
    (part,) = own.split(torch.ones(shape, dtype=torch.long), None, [2], 3)
    with pytest.raises(ValueError, match=r"targets must have the dtype of the outputs, torch.float32, .* torch.int64"):
        own(torch.zeros(2, 3, 1), part)
    (part,) = own.split(torch.ones(shape), None, [2], 3)
    assert own(torch.zeros(2, 3, 1), part).item() == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize("function", [functional.huber_loss, functools.partial(functional.huber_loss), nn.HuberLoss()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.int64, torch.float64, torch.bool])
def test_the_huber_loss_takes_targets_of_another_dtype(function: Any, dtype: torch.dtype, target: torch.dtype) -> None:
    """|1 − 3| − ½ = 1.5 with derivative 1 for the output 3 and the target 1; torch fails in its backward pass."""
    loss = fptt.SequenceLoss(function)
    (part,) = loss.split(torch.ones(1, 1, 1).to(target), None, [1], 1)
    output = torch.full((1, 1, 1), 3.0, dtype=dtype, requires_grad=True)
    value = loss(output, part)
    value.backward()
    assert (value.item(), output.grad) == (1.5, torch.ones(1, 1, 1, dtype=dtype))


def plain(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="none")


def ignoring(output: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    return functional.cross_entropy(output, target, ignore_index=ignore_index, reduction="none")


@pytest.mark.parametrize("loss", [fptt.SequenceLoss, fptt.TerminalLoss])
def test_a_function_of_ones_own_ignores_labels_where_it_has_the_argument(loss: Any) -> None:
    """One label of two is ignored: the mean is log 3 of the other, or of both."""
    for function, expected in ((ignoring, 1.0986), (plain, 0.5493)):
        own = loss(function)
        (part,) = own.split(torch.tensor([[0, -100]] if own.per_step else [0, -100]), None, [1], 2)
        assert own(torch.zeros(1, 2, 3), part).item() == pytest.approx(expected, abs=1e-4)
