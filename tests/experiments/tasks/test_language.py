import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt.experiments.configs.config import Setting, TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.batches import TokenStream
from fptt.experiments.tasks.language import (
    CHARACTERS,
    UNDERSCORED,
    WORDS,
    encode,
    make_task,
    make_vocabulary,
    num_columns,
)
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.tasks.scores import TokenScore
from fptt.experiments.tasks.task import Task
from fptt.experiments.training.evaluation import evaluate_folder
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.language_model import LanguageModel, _one_block
from fptt.experiments.training.sampling import continue_text, sample_text
from fptt.nn.models import plain_cells
from tests.experiments.data_sets import REAL, needs_data, write_splits

DROPOUTS = ("dropout", "input_dropout", "hidden_dropout", "weight_dropout", "embedding_dropout")
V, E, H = 11, 5, 6


def make_model(**options: Any) -> LanguageModel:
    return LanguageModel(**{"num_tokens": V, "embedding_size": E, "hidden_size": H, "num_layers": 2, **options})


def tokens(length: int = 9, size: int = 3) -> Tensor:
    return torch.randint(V, (length, size))


# -- the model -----------------------------------------------------------------------------------------------------


def test_a_tied_weight_is_one_parameter_and_the_last_layer_fits_it() -> None:
    tied, free = make_model(tied=True), make_model()
    assert [tuple(own.h.shape) for own in tied(tokens())[1]] == [(1, 3, H), (1, 3, E)]
    assert [tuple(own.h.shape) for own in free(tokens())[1]] == [(1, 3, H), (1, 3, H)]
    assert [tuple(p.shape) for p in tied.parameters()].count((V, E)) == 1
    assert [name for name in tied.state_dict() if "layers" not in name] == ["decoder_bias", "embedding.weight"]
    assert tied(tokens())[0].shape == (9, 3, V)
    assert tied.decoder_weight is None
    assert free.decoder_weight is not None
    for weight in (tied.embedding.weight, free.embedding.weight, free.decoder_weight):
        assert 0.08 < weight.abs().max() <= 0.1
    assert (tied.decoder_bias == 0).all()


def test_without_an_embedding_size_everything_is_as_wide_as_the_state() -> None:
    model = make_model(embedding_size=None, num_layers=3, tied=True)
    assert [tuple(own.c.shape) for own in model(tokens())[1]] == [(1, 3, H)] * 3
    assert model.embedding.weight.shape == (V, H)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_chunks_with_carried_state_are_one_pass(cell: str, float64: None) -> None:
    model = make_model(cell=cell, tied=True, **dict.fromkeys(DROPOUTS, 0.5)).eval()
    inputs = tokens()
    whole, final = model(inputs)
    state, parts = None, []
    for (chunk,) in fptt.split_sequence(inputs, num_chunks=4):
        outputs, state = model(chunk, state)
        parts.append(outputs)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(inputs, model.initial_state(inputs))[0], whole, rtol=0, atol=0)


class Identity(fptt.nn.LSTM):
    """A layer that shows what it is given."""

    def forward(self, inputs: Tensor, state: Any = None) -> Any:
        return inputs, state


def without_recurrence(**options: Any) -> LanguageModel:
    """Return a model whose outputs are its dropped embedding: the layers hand through, the decoder is the identity."""
    model = LanguageModel(num_tokens=V, hidden_size=V, **options)
    model.layers[0] = Identity(V, V)
    assert model.decoder_weight is not None
    with torch.no_grad():
        model.decoder_weight.copy_(torch.eye(V))
        model.embedding.weight.fill_(1.0)
    return model


@pytest.mark.parametrize("name", ["dropout", "input_dropout"])
def test_locked_dropout_is_the_same_at_every_step_of_a_call(name: str) -> None:
    model = without_recurrence(**{name: 0.5})
    first, second = model(tokens())[0], model(tokens())[0]
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(first, first[:1].expand_as(first))
    assert not torch.equal(first[0, 0], first[0, 1])
    assert not torch.equal(first[0], second[0])
    assert (model.eval()(tokens())[0] == 1).all()


def test_hidden_dropout_is_between_layers_only() -> None:
    one = make_model(num_layers=1, hidden_dropout=0.9)
    inputs = tokens()
    assert torch.equal(one(inputs)[0], one(inputs)[0])
    two = make_model(hidden_dropout=0.5)
    seen: list[Tensor] = []
    two.layers[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    two(inputs)
    is_zero = seen[0] == 0
    assert torch.equal(is_zero, is_zero[:1].expand_as(is_zero))
    assert 0 < is_zero.sum() < is_zero.numel()


def test_embedding_dropout_drops_whole_tokens() -> None:
    model = without_recurrence(embedding_dropout=0.5)
    inputs = torch.arange(V).repeat(2, 1).T
    outputs = model(torch.cat([inputs, inputs]))[0]
    kept = outputs[:V, 0, 0]
    assert set(kept.tolist()) == {0.0, 2.0}
    assert torch.equal(outputs, torch.cat([kept, kept])[:, None, None].expand_as(outputs))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_weight_dropout_reaches_the_raw_weight_and_leaves_nothing_behind(cell: str, float64: None) -> None:
    model = make_model(cell=cell, weight_dropout=0.5)
    inputs = tokens()
    torch.manual_seed(1)
    fused, _ = model(inputs)
    torch.manual_seed(1)
    with plain_cells():
        plain, _ = model(inputs)
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(outputs.square().sum(), list(model.parameters())) for outputs in (fused, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    raw = model.layers[0].get_parameter("rnn.weight_hh_l0")
    dropped = dict(zip(model.parameters(), gradients[0], strict=True))[raw] == 0
    assert 0.2 < dropped.double().mean() < 0.8
    assert not torch.equal(fused, model(inputs)[0])
    copied = copy.deepcopy(model).eval()
    assert torch.equal(copied(inputs)[0], make_same(model)(inputs)[0])


def make_same(model: LanguageModel) -> LanguageModel:
    """Return a model with the same weights that was never trained."""
    cell = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn"}[type(model.layers[0].get_submodule("rnn"))]
    same = make_model(cell=cell)
    same.load_state_dict(model.state_dict())
    return same.eval()


def test_one_block_of_weights_has_their_values_and_gradients() -> None:
    weights = [torch.randn(4, 2, requires_grad=True), torch.randn(4, requires_grad=True)]
    block = _one_block(weights)
    assert block[1].data_ptr() - block[0].data_ptr() == 8 * 4
    (block[0].sum() + 2 * block[1].sum()).backward()
    for weight, part, gradient in zip(weights, block, (1, 2), strict=True):
        assert torch.equal(weight, part)
        assert torch.equal(weight.grad, torch.full_like(weight, gradient))  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("rate", "tied"), [(0.0, True), (0.4, True), (0.4, False)])
def test_the_compiled_engine_is_the_eager_one(rate: float, tied: bool, float64: None) -> None:
    model = make_model(tied=tied, **dict.fromkeys(DROPOUTS, rate))
    loss = fptt.SequenceLoss(functional.cross_entropy)
    methods, states = [], [None, None]
    for engine in ("eager", "compiled"):
        own: Any = copy.deepcopy(model)
        optimizer = torch.optim.Adam(own.parameters(), lr=0.01)
        methods.append(fptt.FPTT(own, optimizer, loss, num_chunks=3, alpha=0.3, engine=engine))  # pyright: ignore
    for _ in range(3):
        inputs, targets, random_state = tokens(), tokens(), torch.get_rng_state()
        results = []
        for number, method in enumerate(methods):
            torch.set_rng_state(random_state)
            results.append(method.train_batch(inputs, targets, states[number]))
            states[number] = results[-1].state
        torch.testing.assert_close(results[0].chunk_losses, results[1].chunk_losses, rtol=0, atol=1e-9)
        torch.testing.assert_close(results[0].state, results[1].state, rtol=0, atol=1e-9)
    weights = [method.model.state_dict() for method in methods]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-9)
    assert not torch.equal(weights[0]["embedding.weight"], model.embedding.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"weight_dropout": -0.1}, r"weight_dropout must be in \[0, 1\), got -0.1"),
        ({"cell": "transformer"}, "cell must be one of 'lstm', 'gru', 'rnn', got 'transformer'"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"embedding_size": 0}, "embedding_size must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_a_state_of_other_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="entry for each of the 2 layers, got 1"):
        make_model()(tokens(), make_model(num_layers=1)(tokens())[1])


# -- the tasks -----------------------------------------------------------------------------------------------------


def test_vocabulary_and_streams_worked_by_hand() -> None:
    assert make_vocabulary("abacabcd") == ("a", "b", "c", "d")
    parts = {"train": "abacabcdb", "validation": "abcd", "test": "dcba"}
    task = make_task(Setting(task="text", batch_size=2, length=2), parts, CHARACTERS, length=100)  # pyright: ignore
    # 0 1 0 2 | 1 0 … : b comes before a in number of times: a 3, b 3, c 2, d 1
    assert task.vocabulary == ("a", "b", "c", "d")
    assert isinstance(task.train, TokenStream)
    windows = [task.train[number] for number in range(len(task.train))]
    assert [window.T.tolist() for window in windows[0]] == [[[0, 1], [0, 1]], [[1, 0], [1, 2]]]
    assert [window.T.tolist() for window in windows[1]] == [[[0], [2]], [[2], [3]]]
    assert task.is_stream
    assert task.has_step_targets
    assert (task.input_size, task.output_size, task.chance) == (4, 4, 2.0)
    inputs, targets = next(task.evaluation_batches(task.test))
    assert (inputs.flatten().tolist(), targets.flatten().tolist()) == ([3, 2], [2, 1])


def test_columns_are_contiguous_and_targets_one_ahead(tmp_path: Path) -> None:
    text = "".join(chr(ord("a") + number % 26) for number in range(26 * 40))
    task = load_text(tmp_path, text, batch_size=4, length=7)
    columns = [torch.cat(part) for part in zip(*(batch[:2] for batch in task.training_batches(4, 0)), strict=True)]
    assert torch.equal(columns[0][1:], columns[1][:-1])
    train = [task.vocabulary[number] for number in columns[0][:, 0]]  # pyright: ignore[reportOptionalSubscript]
    assert "".join(train) == text[: len(train)]
    assert len(columns[0]) == (26 * 40 * 90 // 100 // 4 - 1) // 7 * 7


@pytest.mark.parametrize(("num_tokens", "batch_size", "length"), [(1000, 4, 7), (1003, 5, 40), (51, 3, 16), (12, 2, 5)])
def test_training_reads_the_full_windows_and_evaluation_all(num_tokens: int, batch_size: int, length: int) -> None:
    """As cut by hand, epoch after epoch, and also where another stream goes on in the middle of an epoch."""
    tokens = torch.randint(V, (num_tokens,))
    height = num_tokens // batch_size
    columns = torch.stack([tokens[column * height : (column + 1) * height] for column in range(batch_size)], dim=1)
    starts = range(0, height - 1, length)
    expected = [(columns[at : at + length][: height - 1 - at], columns[at + 1 : at + 1 + length]) for at in starts]
    stream = TokenStream(tokens, batch_size, length)
    assert_same_windows([stream[number] for number in range(len(stream))], expected)
    full = [window for window in expected if len(window[0]) == length]
    assert len(full) == (height - 1) // length
    chunks, again = stream.chunks(), stream.chunks()
    for _ in range(2):
        assert_same_windows(list(chunks), full)
    next(iter(chunks))
    again.load_state_dict(chunks.state_dict())
    assert_same_windows(list(again), full[1:])
    assert_same_windows(list(again), full)


def assert_same_windows(found: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(found) == len(expected)
    for own, window in zip(found, expected, strict=True):
        assert torch.equal(own[0], window[0])
        assert torch.equal(own[1], window[1])


@pytest.mark.parametrize(("num_tokens", "columns"), [(2, 1), (1999, 1), (2000, 2), (9999, 9), (10**6, 10)])
def test_evaluation_loses_few_tokens(num_tokens: int, columns: int) -> None:
    assert num_columns(num_tokens) == columns
    counted = columns * (num_tokens // columns - 1)
    assert num_tokens - counted < max(2, 0.02 * num_tokens)


@pytest.mark.parametrize(("level", "chance"), [("character", 26), ("word", 26)])
def test_a_uniform_model_has_the_metric_of_a_guess(tmp_path: Path, level: str, chance: int) -> None:
    separator = "" if level == "character" else " "
    text = separator.join(chr(ord("a") + number % 26) for number in range(26 * 40))
    task = load_text(tmp_path, text, batch_size=4, length=7, level=level)
    score = task.make_score()
    for _, targets in task.evaluation_batches(task.test):
        score.add(torch.zeros(*targets.shape, task.output_size), targets)
    found = score.metrics()[task.metric]
    size = chance + (level == "word")  # the word for the unknown ones
    expected = {"bits_per_character": math.log2(size), "perplexity": size}[task.metric]
    assert found == pytest.approx(expected)
    assert task.chance == pytest.approx(expected)


def load_text(folder: Path, text: str, **options: Any) -> Task:
    file = folder / "text.txt"
    file.write_text(text, encoding="utf-8")
    return load_task(Setting(task="text", data=str(file), **{"batch_size": 1, "length": 2, **options}), 0)


def decoded(task: Task, name: str) -> list[str]:
    windows = getattr(task, name)
    return [task.vocabulary[number] for number in windows.columns.T.flatten()]  # pyright: ignore


def test_a_file_is_split_by_characters_or_words(tmp_path: Path) -> None:
    text = "ab\n" * 40
    task = load_text(tmp_path, text)
    assert ["".join(decoded(task, part)) for part in ("train", "validation", "test")] == [
        text[:108],
        text[108:114],
        text[114:],
    ]
    task = load_text(tmp_path, "the cat\n" * 36 + "the mouse  saw\nunseen\n" * 2, level="word")
    assert task.vocabulary == ("<eos>", "cat", "the", "<unk>")
    assert decoded(task, "train")[:4] == ["the", "cat", "<eos>", "the"]
    assert decoded(task, "test") == ["the", "<unk>", "<unk>", "<eos>", "<unk>", "<eos>"]


def test_words_that_occur_once_are_one_token(tmp_path: Path) -> None:
    task = load_text(tmp_path, "a a b c a a d " + "a " * 60, level="word")
    assert task.vocabulary == ("a", "<unk>")
    assert decoded(task, "train")[:7] == ["a", "a", "<unk>", "<unk>", "a", "a", "<unk>"]


def test_limit_cuts_every_part_but_not_the_vocabulary(tmp_path: Path) -> None:
    task = load_text(tmp_path, "abc" * 100, limit=5)
    assert ["".join(decoded(task, part)) for part in ("train", "validation", "test")] == ["abcab", "abcab", "abcab"]
    assert task.vocabulary == ("a", "b", "c")
    assert load_text(tmp_path, "aaab" * 100, limit=3).vocabulary == ("a", "b")


def write_texts(folder: Path, column: str = "text", **splits: Sequence[Any]) -> str:
    return write_splits(folder, {name: {column: rows} for name, rows in splits.items()})


def test_a_data_set_keeps_its_splits_and_lends_those_that_lack(tmp_path: Path) -> None:
    def load(data: str) -> Task:
        return load_task(Setting(task="text", data=data, batch_size=1, length=2), 0)

    whole = load(write_texts(tmp_path / "whole", train=["abc", "ab\n", "c"], validation=["cab"], test=["bca"]))
    assert ["".join(decoded(whole, part)) for part in ("train", "validation", "test")] == ["abc\nab\nc", "cab", "bca"]
    no_validation = load(write_texts(tmp_path / "none", train=["abcd" * 10], test=["dab"]))
    assert ["".join(decoded(no_validation, part)) for part in ("train", "validation", "test")] == [
        "abcd" * 9 + "ab",
        "cd",
        "dab",
    ]


def test_penn_treebank_ends_its_lines(tmp_path: Path) -> None:
    setting = Setting(task="ptb-word", batch_size=1, length=3)
    lines = {"train": [" a b <unk> ", "b a"], "validation": ["a new"], "test": ["b"]}
    data = write_texts(tmp_path / "words", "sentence", **lines)
    task = load_task(Setting(**{**vars(setting), "data": data}), 0)
    assert decoded(task, "train") == ["a", "b", "<unk>", "<eos>", "b", "a", "<eos>"]
    assert decoded(task, "validation") == ["a", "<unk>", "<eos>"]
    assert (task.name, task.metric) == ("ptb-word", "perplexity")
    characters = {"train": ["a n _ a", "_ n"], "validation": ["a"], "test": ["n n"]}
    data = write_texts(tmp_path / "characters", "sentence", **characters)
    task = load_task(Setting(**{**vars(setting), "data": data, "task": "ptb-char"}), 0)
    assert decoded(task, "train") == ["a", "n", "_", "a", "\n", "_", "n", "\n"]
    assert (task.name, task.metric) == ("ptb-char", "bits_per_character")
    with pytest.raises(UserError, match="must hold words for the task 'ptb-word', got single characters alone"):
        load_task(Setting(**{**vars(setting), "data": data}), 0)
    data = write_texts(tmp_path / "mixed", "sentence", **{**characters, "test": ["n no"]})
    with pytest.raises(UserError, match=r"the test split must hold single characters .* got 'no': are they the words"):
        load_task(Setting(**{**vars(setting), "data": data, "task": "ptb-char"}), 0)


def test_bad_texts_are_named(tmp_path: Path) -> None:
    latin, empty = tmp_path / "latin.txt", tmp_path / "empty.txt"
    latin.write_bytes("é".encode("latin-1") * 9)
    empty.write_text("")
    good = write_texts(tmp_path / "good", train=["ab" * 50], validation=["ab"], test=["ab"])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data": None}, "data must be given for the task 'text': a text file"),
        ({"data": None, "task": "ptb-char"}, "data must be given for the task 'ptb-char': a folder of Parquet"),
        ({"data": "./nowhere"}, "data './nowhere' does not exist: give a text file"),
        ({"data": "nowhere.txt"}, "data 'nowhere.txt' does not exist"),
        ({"data": str(latin)}, "latin.txt' must be UTF-8: .*invalid"),
        ({"data": str(empty)}, "empty.txt' is empty"),
        ({"data": write_texts(tmp_path / "column", "words", train=["ab"])}, "have the columns text, got words"),
        ({"data": write_texts(tmp_path / "number", train=[1])}, "hold text in column text, got 1"),
        ({"data": write_texts(tmp_path / "no", test=["a"])}, "must have the splits train, got test"),
        ({"data": good, "batch_size": 51}, "batch_size must be at most 50, half of 100 training characters, got 51"),
        ({"data": good, "batch_size": 10, "length": 10}, r"length must be at most 9, .* in 10 columns .*, got 10"),
        ({"data": good}, "length must be at most 99, .* in 1 columns .*, got 100"),
        ({"data": good, "limit": 1, "length": 1}, "the train text must have at least 2 characters, got 1 with limit 1"),
        (
            {"data": write_texts(tmp_path / "void", train=["ab"], validation=[""], test=["ab"]), "length": 1},
            "the validation text must have at least 2 characters, got 0.$",
        ),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            load_task(Setting(**{"task": "text", "batch_size": 1, **options}), 0)


def test_characters_that_training_lacks_are_one_token(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "new", train=["abab"], validation=["aé"], test=["bZ"])
    task = load_task(Setting(task="text", data=data, batch_size=1, length=1), 0)
    assert task.vocabulary == ("a", "b", "<unk>")
    for part in (task.validation, task.test):
        assert isinstance(part, TokenStream)
        assert part.columns[1].item() == 2
    with pytest.raises(UserError, match="the test text has the character 'Z', which does not occur in the training"):
        encode(["a", "Z"], ("a", "b"), CHARACTERS, "the test text")


# -- sampling ------------------------------------------------------------------------------------------------------


class Cycle(nn.Module):
    """Foretells the next of three tokens; its state counts the steps."""

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        count = torch.zeros(1) if state is None else state
        return 5.0 * functional.one_hot((inputs + 1) % 3, 3), count + len(inputs)


@pytest.mark.parametrize("temperature", [0, 1e-30])
def test_greedy_continuation_goes_on_with_the_pattern(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    assert continue_text(Cycle(), [0, 1], num_tokens=5, temperature=temperature, generator=generator) == [2, 0, 1, 2, 0]


def test_draws_follow_the_scores_and_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    found = continue_text(Cycle(), [0], num_tokens=4000, temperature=5.0, generator=generator)
    follows = sum(after == (before + 1) % 3 for before, after in zip([0, *found], found, strict=False))
    assert follows / 4000 == pytest.approx(math.e / (math.e + 2), abs=0.03)


def test_sampling_carries_the_state_and_drops_nothing() -> None:
    model = make_model(**dict.fromkeys(DROPOUTS, 0.5))
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(20)
    generator = torch.Generator()
    drawn = continue_text(model, [1, 2, 3], num_tokens=20, temperature=0, generator=generator)
    assert model.training
    whole, _ = model.eval()(torch.tensor([1, 2, 3, *drawn])[:, None])
    assert whole[2:-1, 0].argmax(-1).tolist() == drawn


def trained_run(folder: Path, steps: int, **options: Any) -> TrainConfig:
    """Train a small model to repeat its text, and leave a run folder."""
    config = TrainConfig(**{"batch_size": 2, "length": 10, "hidden_size": 16, "method": "bptt", **options})
    task = load_task(config, 0)
    model = LanguageModel(num_tokens=task.input_size, hidden_size=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    method = fptt.BPTT(model, optimizer, fptt.SequenceLoss(functional.cross_entropy), num_chunks=1)
    inputs, targets, *_ = next(iter(task.training_batches(2, 0)))
    for _ in range(steps):
        method.train_batch(inputs, targets)
    run = RunFolder(folder)
    run.create(config, load_task(config, 0).vocabulary)
    run.write_weights(model.state_dict(), {})
    return config


def sample(folder: Path, prompt: str | None, num_tokens: int = 5, temperature: float = 0, **options: Any) -> str:
    return sample_text(folder, prompt=prompt, num_tokens=num_tokens, temperature=temperature, seed=0, **options)


def test_a_run_goes_on_with_the_text_of_its_prompt(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc" * 100)
    trained_run(tmp_path / "characters", 60, task="text", data=str(text))
    assert sample(tmp_path / "characters", "bc") == "bcabcab"
    moved = text.rename(tmp_path / "moved.txt")
    assert sample(tmp_path / "characters", "a", 2) == "abc"  # the text is not needed any more
    assert evaluate_folder(tmp_path / "characters", data=str(moved))["test_accuracy"] == 1
    with pytest.raises(UserError, match="prompt has the character 'x'"):
        sample(tmp_path / "characters", "ax")
    with pytest.raises(UserError, match="has no averages"):
        sample(tmp_path / "characters", "a", averages=True)
    moved.write_text("abcd" * 100)
    with pytest.raises(UserError, match="another vocabulary than the run: 4 tokens instead of 3"):
        evaluate_folder(tmp_path / "characters", data=str(moved))
    (tmp_path / "characters" / "vocabulary.json").write_text("5")
    with pytest.raises(UserError, match=r"vocabulary\.json cannot be read \(it does not hold a list of tokens"):
        sample(tmp_path / "characters", "a")
    (tmp_path / "characters" / "vocabulary.json").unlink()
    with pytest.raises(UserError, match=r"vocabulary\.json is missing"):
        sample(tmp_path / "characters", "a")
    with pytest.raises(UserError, match=r"vocabulary\.json is missing"):
        evaluate_folder(tmp_path / "characters", data=str(moved))


@pytest.mark.parametrize(
    ("text", "level", "expected"),
    [
        ("abb" * 100, "character", "b"),  # a text without lines begins with its most frequent character
        ("ab\n" + "aab" * 100, "character", "\n"),
        ("ab\n" + "aab" * 96 + "c" * 20, "character", "\n"),  # of characters that training lacks there is a token too
        ("b a b c d " * 60, "word", "b"),
        ("once never here b a b " + "x%d " * 90 % tuple(range(90)), "word", "b"),  # and not "<unk>", the most frequent
        ("a b\n" * 60, "word", "\n"),
    ],
)
def test_a_text_without_a_prompt_begins_with_a_token_of_its_own(
    text: str, level: str, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(text)
    trained_run(tmp_path / "run", 0, task="text", data=str(file), level=level, length=2)
    found = sample(tmp_path / "run", None, 3)
    assert found.startswith(expected)
    assert found == sample(tmp_path / "run", expected, 3)


def test_perplexity_may_be_infinite() -> None:
    score = TokenScore("perplexity")
    score.add(torch.tensor([[0.0, 2000.0]]), torch.tensor([0]))
    assert score.metrics()["perplexity"] == float("inf")


def test_a_run_of_words_goes_on_with_words_and_lines(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat\nsat  down\n" * 40)
    trained_run(tmp_path / "words", 60, task="text", data=str(text), level="word")
    assert sample(tmp_path / "words", "the") == "the cat\nsat down\n"
    assert sample(tmp_path / "words", "down\nthe unheard-of cat\n", 1).startswith("down\nthe unheard-of cat\n")
    with pytest.raises(UserError, match="prompt must have at least one word, got ' '"):
        sample(tmp_path / "words", " ")


def test_underscores_are_blanks(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data", "sentence", train=["a b _ c"] * 40, validation=["a b"], test=["c c"])
    trained_run(tmp_path / "run", 60, task="ptb-char", data=data)
    assert sample(tmp_path / "run", "ab ", 4) == "ab c\nab"
    assert UNDERSCORED.join(UNDERSCORED.split("a b\n")) == "a b\n"
    assert WORDS.join(WORDS.split("a  b\n\nc")) == "a b\n\nc"


def test_only_runs_of_a_text_are_sampled_from(tmp_path: Path) -> None:
    RunFolder(tmp_path / "digits").create(TrainConfig(task="digits"))
    with pytest.raises(UserError, match="only runs of ptb-word, ptb-char, text can be sampled from"):
        sample(tmp_path / "digits", "a")


def test_the_seed_decides_the_draws() -> None:
    drawn = [
        continue_text(Cycle(), [0], num_tokens=30, temperature=9.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


# -- real data -----------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "folder", "num_tokens", "size"),
    [
        ("ptb-word", "ptb", (929_589, 73_760, 82_430), 10_000),
        ("ptb-char", "ptb_char", (5_017_482, 393_042, 442_423), 50),
        ("text", "tiny_shakespeare", (1_003_854, 55_770, 55_770), 65),
    ],
)
def test_real_texts(name: str, folder: str, num_tokens: tuple[int, ...], size: int) -> None:
    task = load_task(Setting(task=name, data=str(REAL / folder), batch_size=1), 0)
    assert task.vocabulary is not None
    assert len(task.vocabulary) == size
    parts: list[Any] = [task.train, task.validation, task.test]
    assert [part.columns.shape[1] for part in parts] == [1, 10, 10]
    assert [part.columns.numel() for part in parts] == [num_tokens[0], *(count // 10 * 10 for count in num_tokens[1:])]
    first = {"ptb-word": ["aer", "banknote"], "ptb-char": list("aer_banknote"), "text": list("First Citizen:\n")}
    start = parts[0].columns[: len(first[name]), 0]
    assert [task.vocabulary[number] for number in start] == first[name]
