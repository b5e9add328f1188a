"""The estimators are the methods behind the interface of scikit-learn."""

import copy
import pickle
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import estimator_checks
from skorch.callbacks import Checkpoint, EarlyStopping, EpochScoring, GradientNormClipping, LRScheduler
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import fptt
from fptt.integrations.sklearn import FPTTClassifier, FPTTRegressor

N, T = 70, 12
LABELS = np.array(["low", "mid", "top"])
SMALL: dict[str, Any] = {"num_chunks": 3, "hidden_size": 6, "lr": 0.02, "max_epochs": 2, "random_state": 3}


def sequences(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, T, *shape)).astype(np.float32)


FIRST: dict[str, Any] = {"fan_in_init": True, "forget_bias": 1.0}


def standardized(values: np.ndarray) -> np.ndarray:
    exact = values.astype(np.float64)
    return ((exact - exact.mean()) / exact.std()).astype(np.float32)


def names(X: np.ndarray) -> np.ndarray:  # noqa: N803
    return LABELS[np.digitize(X.reshape(len(X), -1).mean(1), [-0.1, 0.1])]


def classifier(**settings: Any) -> Any:
    return FPTTClassifier(**{**SMALL, **settings})


def state_of(net: Any) -> list[Tensor]:
    """Return weights, averages and duals."""
    regularizer = net.method_.regularizer
    remembered = [] if regularizer is None else [tensor for entry in regularizer.state.values() for tensor in entry]
    return [*net.module_.parameters(), *remembered]


def assert_same(one: Any, other: Any) -> None:
    assert len(state_of(one)) == len(state_of(other))
    assert all(torch.equal(*pair) for pair in zip(state_of(one), state_of(other), strict=True))


X, Y = sequences(), names(sequences())
LENGTHS = np.random.default_rng(5).integers(4, T + 1, N)
WIDE = 3 * sequences(6, 2) + 5
RAGGED = [own[:length] for own, length in zip(WIDE, LENGTHS, strict=True)]
STEPS = [np.where(own.mean(1) > 5, "up", "down") for own in RAGGED]


@pytest.mark.parametrize("settings", [{}, {"form": "released", "coupling": "coupled", "mu": 2.0, "num_duals": 3}])
def test_fit_is_the_loop_by_hand(settings: dict[str, Any]) -> None:
    net = classifier(**settings).fit(X, Y)
    torch.manual_seed(3)
    model = fptt.nn.LSTM(1, 6, 3, last_only=True, **FIRST)
    loss = fptt.TerminalLoss(nn.functional.cross_entropy, divergence="uniform")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    method = fptt.FPTT(model, optimizer, loss, num_chunks=3, max_norm=1.0, **settings)
    labels = torch.from_numpy(np.searchsorted(LABELS, Y))
    scaled = torch.from_numpy(standardized(X))
    data = DataLoader(TensorDataset(scaled, labels), batch_size=32, shuffle=True)
    for _ in range(2):
        for inputs, targets in data:
            method.train_batch(inputs.T[..., None], targets)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), net.module_.parameters(), strict=True))
    assert net.method_.updates == method.updates == 2 * 3 * 3
    outputs = model(scaled.T[..., None])[0][-1]
    assert np.allclose(net.predict_proba(X), outputs.softmax(-1).detach().numpy(), atol=1e-6)
    assert net.predict(X).tolist() == LABELS[outputs.argmax(-1).numpy()].tolist()


def test_the_method_is_the_one_that_is_named() -> None:
    without_alpha = classifier(alpha=0.0).fit(X, Y)
    assert_same(without_alpha, classifier(method="tbptt").fit(X, Y))
    assert_same(classifier(method="bptt").fit(X, Y), classifier(alpha=0.0, num_chunks=1).fit(X, Y))
    weights = [state_of(classifier(method=name).fit(X, Y))[0] for name in ("fptt", "tbptt", "bptt")]
    assert not any(torch.equal(weights[one], weights[other]) for one, other in [(0, 1), (0, 2), (1, 2)])
    assert type(classifier(cell="gru").fit(X, Y).module_) is fptt.nn.GRU
    assert classifier(divergence="running").fit(X, Y).method_.loss.prior.probabilities.std() > 0
    assert not torch.equal(state_of(classifier(divergence=None).fit(X, Y))[0], weights[0])


@pytest.mark.usefixtures("both_ways")
def test_the_compiled_engine_trains_the_same() -> None:
    eager, compiled = (classifier(engine=name, num_chunks=T, batch_size=N).fit(X, Y) for name in ("eager", "compiled"))
    assert compiled.method_.engine == "compiled"
    for one, other in zip(state_of(eager), state_of(compiled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    restored = pickle.loads(pickle.dumps(compiled))
    assert_same(restored.partial_fit(X, Y), compiled.partial_fit(X, Y))


def test_a_seed_gives_the_same_net_and_leaves_other_generators_alone() -> None:
    dropout: dict[str, Any] = {"module__num_layers": 2, "module__dropout": 0.5}
    before = torch.get_rng_state()
    net = classifier(**dropout).fit(X, Y)
    assert torch.equal(torch.get_rng_state(), before)
    again = copy.deepcopy(net)
    torch.manual_seed(99)
    assert_same(net, again.fit(X, Y))
    other: Any = clone(net)
    assert_same(net, other.fit(X, Y))
    assert not torch.equal(state_of(classifier(random_state=4, **dropout).fit(X, Y))[0], state_of(net)[0])
    np.random.seed(1)
    unseeded = classifier(random_state=None).fit(X, Y)
    np.random.seed(1)
    assert_same(unseeded, classifier(random_state=None).fit(X, Y))


def test_a_model_that_is_made_anew_has_the_seeds_numbers() -> None:
    nets = [classifier().fit(X, Y) for _ in range(2)]
    for seed, net in enumerate(nets):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        net.set_params(module__num_layers=2).partial_fit(X, Y)
        assert torch.equal(torch.get_rng_state(), before)
    assert nets[0].module_.rnn.num_layers == 2
    assert_same(*nets)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("settings", [{}, {"num_duals": 3, "divergence": "running"}, {"method": "tbptt"}], ids=str)
def test_a_copy_predicts_and_trains_on_the_same(settings: dict[str, Any], copied: Any) -> None:
    net = classifier(**settings).fit(X, Y)
    other = copied(net)
    assert np.array_equal(net.predict_proba(X), other.predict_proba(X))
    net.partial_fit(X, Y)
    assert not torch.equal(state_of(net)[0], state_of(other)[0])
    assert_same(net, other.partial_fit(X, Y))
    assert net.method_.updates == other.method_.updates


def test_partial_fit_goes_on_where_fit_ended() -> None:
    assert_same(classifier(max_epochs=4).fit(X, Y), classifier().fit(X, Y).partial_fit(X, Y))
    assert_same(classifier(max_epochs=4).fit(X, Y), classifier(warm_start=True).fit(X, Y).fit(X, Y))
    begun = classifier().partial_fit(X[Y != "low"], Y[Y != "low"], classes=LABELS)
    assert begun.partial_fit(X, Y).predict_proba(X).shape == (N, 3)


def test_parameters_are_saved_and_loaded_apart(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"f_{name}": str(tmp_path / name) for name in ("params", "optimizer", "method")}
    net = classifier(iterator_train__shuffle=False).fit(X, Y)
    net.save_params(**files)
    other: Any = clone(net)
    other.set_params(max_epochs=0, random_state=5).fit(X, Y)
    other.load_params(**files)
    assert_same(net, other)
    other.set_params(max_epochs=2)
    assert_same(net.partial_fit(X, Y), other.partial_fit(X, Y))


def test_labels_may_be_of_any_type() -> None:
    expected = classifier().fit(X, Y)
    for labels in (Y.astype(object), np.array([30, 7, 9])[np.searchsorted(LABELS, Y)], list(Y)):
        net = classifier().fit(X, labels)
        assert net.classes_.tolist() == sorted(set(labels))
        assert set(net.predict(X)) <= set(labels)
        assert net.score(X, labels) == np.mean(net.predict(X) == np.asarray(labels))
    assert_same(expected, classifier().fit(X, Y.astype(object)))
    assert expected.classes_.tolist() == LABELS.tolist()


def test_widths_and_lengths() -> None:
    wide = sequences(0, 2)
    net = classifier().fit(wide, names(wide))
    assert net.predict_proba(wide[:, :1]).shape == net.predict_proba(np.tile(wide, (1, 3, 1))).shape == (N, 3)
    assert_same(classifier().fit(X, Y), classifier().fit(X[..., None], Y))
    assert_same(classifier().fit(X, Y), classifier().fit(X.astype(np.float64).tolist(), Y))


def test_data_sets_of_ones_own_are_scaled_and_numbered_as_in_fit() -> None:
    data, held_out = 50 + 9 * X[:50], Dataset(50 + 9 * X[50:], Y[50:])
    net = classifier(train_split=predefined_split(held_out)).fit(data, Y[:50])
    probabilities = net.predict_proba(held_out.X)
    assert net.history[-1, "valid_loss"] == pytest.approx(log_loss(Y[50:], probabilities), rel=1e-5)
    assert net.history[-1, "valid_acc"] == pytest.approx(net.score(held_out.X, Y[50:]))
    assert np.array_equal(net.predict_proba(held_out), probabilities)
    tensors = TensorDataset(*map(torch.as_tensor, (held_out.X, held_out.X[:, 0])))
    numbers = FPTTRegressor(**SMALL, train_split=predefined_split(tensors)).fit(data, data[:, 0])
    expected = np.mean((numbers.predict(held_out.X) - held_out.X[:, 0]) ** 2)
    assert numbers.history[-1, "valid_loss"] == pytest.approx(expected, rel=1e-5)
    for wrong, message in (
        (ConcatDataset([held_out]), "Dataset.X, y., or a part of one, got a ConcatDataset"),
        (Dataset(held_out.X[..., None].repeat(2, 2), Y[50:]), "X must have D = 1"),
        (Dataset(held_out.X * np.nan, Y[50:]), "X contains NaN"),
        (Dataset(held_out.X, Y[:1].repeat(20) + "er"), "y must have labels of"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(train_split=predefined_split(wrong)).fit(data, Y[:50])

    def halves(whole: Any, _: Any) -> tuple[Dataset, Dataset]:
        return Dataset(whole.X[::2], whole.y[::2]), Dataset(whole.X[1::2], whole.y[1::2])

    split = classifier(train_split=halves).fit(data, Y[:50])
    assert split.history[-1, "valid_acc"] == pytest.approx(split.score(data[1::2], Y[1:50:2]))


def test_large_integers_keep_their_digits() -> None:
    """Steps of a second, in the seconds since 1970, which are two minutes apart in float32."""
    steps = (20 * X).astype(np.int64)
    net, other = (classifier().fit(begin + steps, Y) for begin in (1_700_000_000, 0))
    assert np.allclose(net.predict_proba(1_700_000_000 + steps), other.predict_proba(steps), atol=1e-3)
    assert (net.deviation_ > 10).all()


@pytest.mark.parametrize(
    ("X", "y", "settings", "message"),
    [
        (np.where(X > 1, np.nan, X), Y, {}, "X contains NaN"),
        (X[0], Y, {}, "Expected 2D array"),
        (X[..., None, None], Y, {}, r"X must have shape \(N, T\) or \(N, T, D\)"),
        (X[:, :2], Y, {}, "num_chunks must be at most the sequence length 2, got 3"),
        (X, Y[1:], {}, "inconsistent numbers of samples"),
        (X, X.mean(1), {}, "Unknown label type"),
        (X, np.full(N, "one"), {}, "y must have labels of at least 2 classes"),
        (X, Y, {"method": "rtrl"}, "method must be one of"),
        (
            X,
            Y,
            {"cell": "qrnn"},
            r"cell must be one of .* callable \(input_size, hidden_size, output_size, \*\*options",
        ),
        (X, Y, {"cell": ["lstm"]}, r"cell must be one of .* got \['lstm'\]"),
        (X, Y, {"cell": nn.LSTM}, "cell must be .* got torch.nn.LSTM, which has no output_size: .* is num_layers"),
        (X, Y, {"cell": nn.GRUCell}, "cell must be .* got torch.nn.GRUCell, which has no output_size: .* is bias"),
        (X, Y, {"cell": partial(nn.GRU)}, "output_size = 3 outputs a step, got 6 of GRU"),
        (X, Y, {"divergence": "flat"}, "divergence must be"),
        (X, Y, {"alpha": -1.0}, "alpha must be"),
        (X, Y, {"hiden_size": 3}, "unexpected argument"),
        (X, Y, {"callbacks": [GradientNormClipping(1.0)]}, "callbacks must not need the gradient"),
        ([*RAGGED[:3], np.zeros((0, 2))], Y[:4], {}, r"X\[3\] must have at least one step, got none"),
        ([*RAGGED[:3], RAGGED[3] * np.nan], Y[:4], {}, r"X\[3\] contains NaN"),
        ([*RAGGED[:3], RAGGED[3][:, :1]], Y[:4], {}, r"one width, got shape \(\d+, 1\) of X\[3\] after"),
        ([*RAGGED[:3], RAGGED[3][None]], Y[:4], {}, r"X\[3\] must have shape \(T,\) or \(T, D\)"),
        (X, X > 0, {}, r"y should be a 1d array.* One for every step needs per_step=True"),
        (RAGGED, STEPS[1:], {"per_step": True}, "targets for each of 70 sequences with per_step=True, got 69"),
        (RAGGED, [*STEPS[:-1], STEPS[-1][1:]], {"per_step": True}, r"y\[69\] must have a target for each of"),
        (RAGGED, Y, {"per_step": True}, r"y\[0\] must have a target for each of \d+ steps of X\[0\], got "),
    ],
)
def test_bad_input_is_named(X: Any, y: Any, settings: dict[str, Any], message: str) -> None:  # noqa: N803
    with pytest.raises(ValueError, match=message):
        classifier(**settings).fit(X, y)


def test_a_cell_of_ones_own_has_the_numbers_of_the_named_one() -> None:
    own = partial(fptt.nn.GRU, fan_in_init=True, last_only=True, dropout=0.5, num_layers=2)
    named = classifier(cell="gru", module__dropout=0.5, module__num_layers=2)
    assert_same(classifier(cell=own).fit(X, Y), named.fit(X, Y))


def test_what_does_not_fit_the_net_is_named() -> None:
    with pytest.raises(NotFittedError):
        classifier().predict(X)
    with pytest.raises(ValueError, match="learns its sizes from the data"):
        classifier().initialize()
    net = classifier().fit(X, Y)
    with pytest.raises(ValueError, match="X must have D = 1"):
        net.predict(sequences(0, 2))
    with pytest.raises(ValueError, match="X contains NaN"):
        net.predict(np.full((2, T), np.nan))
    with pytest.raises(ValueError, match=r"y must have labels of .* got \['new'\]"):
        net.partial_fit(X[:2], ["low", "new"])
    with pytest.raises(TypeError, match="fit takes X and y alone, got sample_weight"):
        net.fit(X, Y, sample_weight=np.ones(N))
    net = classifier().fit(X, Y).set_params(alpha=0.3)
    with pytest.raises(ValueError, match=r"alpha must not change between calls of partial_fit, got 0.3 after 0.1"):
        net.partial_fit(X, Y)
    assert_same(net.fit(X, Y), classifier(alpha=0.3).fit(X, Y))


def test_in_a_pipeline_and_a_grid_search() -> None:
    shape = FunctionTransformer(lambda values: values.reshape(-1, 6, 2))
    pipeline = make_pipeline(StandardScaler(), shape, classifier(max_epochs=15))
    assert isinstance(pipeline, Pipeline)
    assert pipeline.fit(X, Y).score(X, Y) > 0.7
    grid = {"fpttclassifier__num_chunks": [2, 3], "fpttclassifier__alpha": [0.0, 0.2]}
    search = GridSearchCV(pipeline.set_params(fpttclassifier__max_epochs=1), grid, cv=2)
    assert np.isfinite(search.fit(X, Y).cv_results_["mean_test_score"]).tolist() == [True] * 4
    best = search.best_estimator_[-1]
    assert best.method_.chunking.num_chunks == search.best_params_["fpttclassifier__num_chunks"]
    assert np.array_equal(search.predict(X), search.best_estimator_.predict(X))
    assert cross_val_score(FPTTRegressor(**SMALL), X, X.mean(1), cv=2).shape == (2,)


def test_settings_may_be_numbers_of_numpy() -> None:
    """As those of a grid with np.arange and np.linspace are."""
    own: dict[str, Any] = {"num_chunks": 3, "hidden_size": 4, "batch_size": 16, "num_duals": 3, "max_epochs": 1}
    own |= {"alpha": 0.25, "max_norm": 0.5, "beta": 0.5}
    of_numpy = {name: (np.int64 if type(value) is int else np.float32)(value) for name, value in own.items()}
    assert_same(classifier(**own).fit(X, Y), classifier(**of_numpy).fit(X, Y))
    grid = {"hidden_size": np.arange(3, 5), "batch_size": np.array([16, -1])}
    assert np.isfinite(GridSearchCV(classifier(), grid, cv=2).fit(X, Y).cv_results_["mean_test_score"]).all()
    bare = classifier(method="bptt", max_norm=np.float32(0.5)).fit(X, Y)
    assert_same(bare, classifier(method="bptt", max_norm=0.5).fit(X, Y))


def test_every_parameter_of_the_signature_is_kept() -> None:
    for kind in (FPTTClassifier, FPTTRegressor):
        named = {name for name, value in signature(kind).parameters.items() if value.kind is value.KEYWORD_ONLY}
        settings: dict[str, Any] = {name: object() for name in named}
        net: Any = kind(**settings)
        assert {name: net.get_params(deep=False)[name] for name in named} == settings
    of_classifier, of_regressor = signature(FPTTClassifier).parameters, signature(FPTTRegressor).parameters
    assert of_classifier.keys() - of_regressor.keys() == {"divergence"}
    assert all(of_classifier[name].default == value.default for name, value in of_regressor.items())


def test_parameters_survive_clone() -> None:
    net = classifier(alpha=0.25, optimizer__weight_decay=0.1, cell="rnn", callbacks=[("stop", EarlyStopping())])
    copied: Any = clone(net)
    names_of = set(SMALL) | {"alpha", "optimizer__weight_decay", "cell", "divergence", "method"}
    assert {name: copied.get_params()[name] for name in names_of} == {n: net.get_params()[n] for n in names_of}
    assert "module" not in copied.get_params(deep=False)


def test_callbacks_see_metrics_of_the_same_labels(tmp_path: Path) -> None:
    """Skorch scores numbers, the user names: predictions inside and outside of training match their targets."""
    nothing: Any = None
    scoring = [
        ("train", EpochScoring("accuracy", name="train_acc", on_train=True, lower_is_better=False)),
        ("f1", EpochScoring("f1_macro", name="f1", use_caching=False, lower_is_better=False)),
        ("rate", LRScheduler("StepLR", step_size=1, gamma=0.5)),
        ("kept", Checkpoint(monitor=nothing, f_pickle="net.pkl", dirname=str(tmp_path))),
    ]
    net = classifier(max_epochs=3, callbacks=scoring, train_split=ValidSplit(3, stratified=True)).fit(X, Y)
    held_out = ValidSplit(3, stratified=True)(TensorDataset(torch.from_numpy(X)), Y)[1].indices
    assert net.history[-1, "valid_acc"] == pytest.approx(net.score(X[held_out], Y[held_out]))
    assert net.history[-1, "train_acc"] > 0.2
    expected = f1_score(Y[held_out], net.predict(X[held_out]), average="macro")
    assert net.history[-1, "f1"] == pytest.approx(expected)
    assert net.optimizer_.param_groups[0]["lr"] == pytest.approx(0.02 / 8)
    kept = pickle.loads((tmp_path / "net.pkl").read_bytes())
    assert np.array_equal(kept.predict(X), net.predict(X))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("ragged", [True, False])
def test_callbacks_score_what_the_net_scores(cached: bool, ragged: bool) -> None:
    """Far from 0, where inputs that are scaled twice are all alike."""
    data: Any = [50 + 9 * own[:length, None] for own, length in zip(X, LENGTHS, strict=True)]
    data = data if ragged else 50 + 9 * X
    scoring = EpochScoring("r2", name="r2", use_caching=cached, lower_is_better=False)
    held_out = predefined_split(Dataset(data, X[:, 0], length=N))
    net: Any = FPTTRegressor(**SMALL, callbacks=[scoring], train_split=held_out).fit(data, X[:, 0])
    assert net.history[-1, "r2"] == pytest.approx(net.score(data, X[:, 0]))


@pytest.mark.filterwarnings("ignore")  # of data that the checks make
@pytest.mark.parametrize("net", [FPTTClassifier, FPTTRegressor])
@pytest.mark.parametrize(
    "name",
    [
        *("dict_unchanged", "estimator_repr", "estimators_dtypes", "estimators_nan_inf"),
        *("estimators_overwrite_params", "estimators_pickle", "estimators_unfitted", "fit_check_is_fitted"),
        *("fit_idempotent", "fit_score_takes_y", "get_params_invariance", "methods_sample_order_invariance"),
        *("methods_subset_invariance", "pipeline_consistency", "requires_y_none"),
    ],
)
def test_the_contract_of_scikit_learn(name: str, net: Any) -> None:
    """Without those checks that want one number of features, here of steps, or attributes that skorch has not."""
    check = getattr(estimator_checks, f"check_{name}")
    check(net.__name__, net(num_chunks=1, hidden_size=3, max_epochs=1, random_state=0))


@pytest.mark.parametrize("num_targets", [None, 1, 2])
def test_the_regressor_learns_numbers(num_targets: int | None) -> None:
    y = 2 * X.mean(1) if num_targets is None else np.stack([X.mean(1), X[:, -1] / 3], 1)[:, :num_targets]
    net = FPTTRegressor(**{**SMALL, "max_epochs": 40}).fit(X, y)
    assert net.predict(X).shape == y.shape
    assert net.score(X, y) > 0.6
    with pytest.raises(ValueError, match="y must have M = "):
        net.partial_fit(X, np.zeros((N, 3)))
    with pytest.raises(ValueError, match="y contains NaN"):
        net.fit(X, np.where(y > 0, np.nan, y))


def test_the_regressors_loop_by_hand() -> None:
    y = X.mean(1)
    net = FPTTRegressor(**SMALL).fit(X, y)
    torch.manual_seed(3)
    model = fptt.nn.LSTM(1, 6, 1, last_only=True, **FIRST)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    method = fptt.FPTT(model, optimizer, fptt.TerminalLoss(nn.functional.mse_loss), num_chunks=3, max_norm=1.0)
    scaled = torch.from_numpy(standardized(X))
    data = DataLoader(TensorDataset(scaled, torch.from_numpy(y)), batch_size=32, shuffle=True)
    for _ in range(2):
        for inputs, targets in data:
            method.train_batch(inputs.T[..., None], targets[:, None])
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), net.module_.parameters(), strict=True))


# -- ragged sequences, and labels of steps -----------------------------------------------------------------------------


def padded(values: list[np.ndarray]) -> Tensor:
    """Return (T, N, …), padded by zeros."""
    return nn.utils.rnn.pad_sequence([torch.from_numpy(np.asarray(own)) for own in values])


def by_hand(model: nn.Module, loss: fptt.ChunkLoss, targets: Tensor, *, per_step: bool) -> Tensor:
    """Train for two epochs on batches of all sequences, in their order; return scaled inputs, (T, N, 2)."""
    flat = np.concatenate(RAGGED).astype(np.float64)
    scaled = padded([((own - flat.mean(0)) / flat.std(0)).astype(np.float32) for own in RAGGED])
    mask = fptt.length_mask(LENGTHS.tolist(), len(scaled))
    method = fptt.FPTT(model, torch.optim.Adam(model.parameters(), lr=0.02), loss, num_chunks=3, max_norm=1.0)
    for _ in range(2):
        for start in range(0, N, 32):
            part = slice(start, start + 32)
            own = targets[:, part] if per_step else targets[part]
            method.train_batch(scaled[:, part], own, mask=mask[:, part])
    return scaled


@pytest.mark.parametrize("per_step", [False, True])
def test_ragged_sequences_are_the_masked_loop_by_hand(per_step: bool) -> None:
    y: Any = STEPS if per_step else Y
    net = classifier(per_step=per_step, iterator_train__shuffle=False).fit(RAGGED, y)
    names_of = ["down", "up"] if per_step else LABELS.tolist()
    torch.manual_seed(3)
    model = fptt.nn.LSTM(2, 6, len(names_of), **FIRST)
    if per_step:
        loss: fptt.ChunkLoss = fptt.SequenceLoss(nn.functional.cross_entropy)
        targets = padded([np.searchsorted(names_of, own) for own in STEPS])
    else:
        loss = fptt.TerminalLoss(nn.functional.cross_entropy, divergence="uniform")
        targets = torch.from_numpy(np.searchsorted(names_of, Y))
    scaled = by_hand(model, loss, targets, per_step=per_step)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), net.module_.parameters(), strict=True))
    outputs = model(scaled)[0].softmax(-1)
    found = net.predict_proba(RAGGED)
    for number, length in enumerate(LENGTHS):
        expected = outputs[:length, number] if per_step else outputs[length - 1, number]
        assert np.allclose(found[number], expected.detach().numpy(), atol=1e-6)
    predicted = net.predict(RAGGED)
    if per_step:
        assert [own.shape for own in predicted] == [own.shape for own in STEPS]
        assert net.score(RAGGED, STEPS) == np.mean(np.concatenate(predicted) == np.concatenate(STEPS))
    else:
        assert net.score(RAGGED, Y) == np.mean(predicted == Y)
    objects = np.empty(N, dtype=object)
    objects[:] = RAGGED
    assert_same(net, classifier(per_step=per_step, iterator_train__shuffle=False).fit(objects, y))


def test_a_net_of_equal_lengths_predicts_ragged_sequences_at_their_last_steps() -> None:
    net = classifier().fit(WIDE, Y)
    found = net.predict_proba(RAGGED)
    for number in (0, 7, 40):
        assert np.allclose(found[number], net.predict_proba(RAGGED[number][None])[0], atol=1e-6)
    assert net.module_.last_only
    with pytest.raises(ValueError, match="X must have sequences of one length, as in the first fit, got ragged ones"):
        net.partial_fit(RAGGED, Y)


@pytest.mark.parametrize("width", [None, 2])
def test_the_regressor_learns_numbers_of_steps(width: int | None) -> None:
    """The running mean, of arrays and of ragged lists; validated too, where skorch would measure classes."""
    y = X.cumsum(1) / np.arange(1, T + 1)
    y = y if width is None else np.stack([y, -y], -1)
    settings: dict[str, Any] = {**SMALL, "max_epochs": 30, "per_step": True}
    net: Any = FPTTRegressor(**settings, train_split=ValidSplit(5)).fit(X, y)
    assert net.predict(X).shape == y.shape
    assert net.score(X, y) > 0.7
    assert net.history[-1, "valid_loss"] < 0.3 * net.history[0, "valid_loss"]
    ragged, numbers = (
        [own[:n] for own, n in zip(X, LENGTHS, strict=True)],
        [own[:n] for own, n in zip(y, LENGTHS, strict=True)],
    )
    of_lists: Any = FPTTRegressor(**settings).fit(ragged, numbers)
    assert [own.shape for own in of_lists.predict(ragged)] == [own.shape for own in numbers]
    assert of_lists.score(ragged, numbers) > 0.7


def test_first_settings() -> None:
    """K = √T of the longest sequence; inputs of any scale; what is given is kept."""
    net = FPTTClassifier(hidden_size=4, max_epochs=1, random_state=0).fit(WIDE[:, :10], Y)
    assert net.method_.chunking.num_chunks == net.num_chunks_ == 3
    assert net.num_chunks is None
    shifted = FPTTClassifier(hidden_size=4, max_epochs=1, random_state=0).fit(4 * WIDE[:, :10] - 64, Y)
    assert np.allclose(net.predict_proba(WIDE), shifted.predict_proba(4 * WIDE - 64), atol=1e-6)
    raw = FPTTClassifier(standardize=False, hidden_size=4, max_epochs=1, random_state=0).fit(WIDE[:, :10], Y)
    assert not np.allclose(net.predict_proba(WIDE), raw.predict_proba(WIDE), atol=1e-3)
    constant = np.concatenate([WIDE, np.ones_like(WIDE)], -1)
    assert np.isfinite(classifier().fit(constant, Y).predict_proba(constant)).all()
    chrono = classifier(max_epochs=0, module__chrono_init=T, module__fan_in_init=False).fit(X, Y).module_
    torch.manual_seed(3)
    expected = fptt.nn.LSTM(1, 6, 3, last_only=True, chrono_init=T)
    assert all(torch.equal(*pair) for pair in zip(chrono.parameters(), expected.parameters(), strict=True))
    assert classifier(max_epochs=0, cell="gru").fit(RAGGED, Y).module_.last_only is False


def test_validation_of_steps_is_that_of_real_steps() -> None:
    net: Any = classifier(per_step=True, train_split=ValidSplit(3), max_epochs=1).fit(RAGGED, STEPS)
    held_out = ValidSplit(3)(TensorDataset(torch.from_numpy(LENGTHS)), LENGTHS)[1].indices
    losses = [
        -np.log(net.predict_proba(RAGGED)[number][np.arange(LENGTHS[number]), (STEPS[number] == "up").astype(int)])
        for number in held_out
    ]
    # one batch of validation, so that its mean is that of all steps
    assert net.history[-1, "valid_loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)


@pytest.mark.parametrize("kind", [FPTTClassifier, FPTTRegressor])
@pytest.mark.parametrize("ragged", [True, False])
def test_labels_of_steps_are_scored_in_training_and_of_a_data_set(kind: Any, ragged: bool) -> None:
    data = RAGGED if ragged else WIDE
    y: Any = [own.sum(1) > 10 if kind is FPTTClassifier else own.mean(1) for own in data]
    whole = Dataset(data, y, length=N)
    scoring = [
        EpochScoring(None, name=f"{cached} {on_train}", use_caching=cached, on_train=on_train, lower_is_better=False)
        for cached, on_train in [(True, False), (False, False), (False, True)]
    ]
    scoring.append(EpochScoring(None, name="frozen", on_train=True, lower_is_better=False))
    split = predefined_split(whole)
    net = kind(**SMALL, per_step=True, train_split=split, callbacks=scoring).fit(data, y)
    expected = net.score(data, y)
    assert net.score(whole, y) == expected
    assert [net.history[-1, own.name] for own in scoring[:3]] == pytest.approx([expected] * 3)
    frozen: Any = clone(net)
    frozen.set_params(lr=0.0, callbacks=scoring[3:]).fit(data, y)  # of shuffled batches
    assert frozen.history[-1, "frozen"] == pytest.approx(frozen.score(data, y))


def test_a_constant_is_not_divided_by_its_rounding_error() -> None:
    constant = np.concatenate([WIDE, np.full_like(WIDE, 37.3)], -1)
    net = classifier().fit(constant, Y)
    assert net.deviation_[-1] == 1
    moved = constant + np.array([*[0.0] * WIDE.shape[-1], *[1e-9] * WIDE.shape[-1]])
    np.testing.assert_allclose(net.predict_proba(moved), net.predict_proba(constant), atol=1e-6)


@pytest.mark.parametrize("per_step", [False, True])
def test_an_array_of_sequences_is_a_list_of_them(*, per_step: bool) -> None:
    generator = np.random.default_rng(0)
    ragged = [generator.normal(size=(length, 2)) for length in (6, 9, 9, 7)]
    y = [np.arange(len(own)) % 2 for own in ragged] if per_step else [0, 1, 0, 1]
    objects = np.empty(len(ragged), dtype=object)
    objects[:] = ragged
    net = classifier(per_step=per_step).fit(objects, y)
    for chosen in (slice(None), slice(1, 3), slice(1)):
        found, expected = net.predict(objects[chosen]), net.predict(ragged[chosen])
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


# -- the criterion -----------------------------------------------------------------------------------------------------


WEIGHT = torch.tensor([0.2, 1.0, 3.0])


class Cubed(nn.Module):
    """A loss of one's own, with a value per element."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs() ** 3


@pytest.mark.parametrize("method", ["fptt", "bptt"])
def test_options_of_the_criterion_are_in_the_loop_by_hand(method: Any) -> None:
    net = classifier(method=method, criterion__weight=WEIGHT, criterion__label_smoothing=0.2).fit(X, Y)
    torch.manual_seed(3)
    model = fptt.nn.LSTM(1, 6, 3, last_only=True, **FIRST)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    own = nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2)
    loss = fptt.TerminalLoss(own, divergence="uniform")
    by_hand: Any = (
        fptt.BPTT(model, optimizer, loss, max_norm=1.0)
        if method == "bptt"
        else fptt.FPTT(model, optimizer, loss, num_chunks=3, max_norm=1.0)
    )
    labels = torch.from_numpy(np.searchsorted(LABELS, Y))
    data = DataLoader(TensorDataset(torch.from_numpy(standardized(X)), labels), batch_size=32, shuffle=True)
    for _ in range(2):
        for inputs, targets in data:
            by_hand.train_batch(inputs.T[..., None], targets)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), net.module_.parameters(), strict=True))
    assert_same(net, classifier(method=method, criterion=own).fit(X, Y))  # an object instead of class and options
    restored = pickle.loads(pickle.dumps(net))
    assert_same(net.partial_fit(X, Y), restored.partial_fit(X, Y))


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize(("criterion", "options"), [(nn.L1Loss, {}), (nn.HuberLoss, {"delta": 0.1}), (Cubed, {})])
def test_the_regressors_criterion_is_the_one_that_is_given(criterion: Any, options: Any, per_step: bool) -> None:
    """By hand: one chunk, one batch, and a first chunk loss that is that of the weights at the start."""
    y = X.cumsum(1) if per_step else X.mean(1)
    settings = {**SMALL, "num_chunks": 1, "max_epochs": 1, "batch_size": N, "per_step": per_step}
    named = {f"criterion__{name}": value for name, value in options.items()}
    net = FPTTRegressor(**settings, criterion=criterion, **named).fit(X, y)
    torch.manual_seed(3)
    outputs = fptt.nn.LSTM(1, 6, 1, last_only=not per_step, **FIRST)(torch.from_numpy(standardized(X)).T[..., None])[0]
    found = outputs[..., 0].T if per_step else outputs[0, :, 0]
    error = (found - torch.from_numpy(y)).abs()
    huber = torch.where(error < 0.1, 0.5 * error**2, 0.1 * (error - 0.05))
    expected = {nn.L1Loss: error, nn.HuberLoss: huber, Cubed: error**3}[criterion].mean().item()
    assert net.history[0, "train_loss"] == pytest.approx(expected, rel=1e-5)
    validated: Any = FPTTRegressor(**settings, criterion=criterion, **named, train_split=ValidSplit(5)).fit(X, y)
    assert np.isfinite(validated.history[0, "valid_loss"])


class Focal(nn.Module):
    """(1 − p)² times the cross-entropy of logits, a value per element."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        logs = output.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        return -((1 - logs.exp()) ** 2) * logs


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, nn.MultiMarginLoss, Focal])
def test_probabilities_are_the_softmax_of_the_outputs(criterion: Any, per_step: bool, num_labels: int) -> None:
    y = np.digitize(X if per_step else X.mean(1), [-0.1, 0.1][: num_labels - 1])
    net = classifier(criterion=criterion, divergence=None, per_step=per_step).fit(X, y)
    outputs = np.exp(net.forward(X).numpy())
    found = net.predict_proba(X)
    assert found.shape == (N, *[T] * per_step, num_labels)
    np.testing.assert_allclose(found, outputs / outputs.sum(-1, keepdims=True), rtol=1e-5)
    net.set_params(predict_nonlinearity=None)
    np.testing.assert_array_equal(net.predict_proba(X), net.forward(X).numpy())


def test_a_criterion_survives_clone_and_a_search_finds_its_options() -> None:
    net = classifier(criterion__weight=WEIGHT, criterion=nn.CrossEntropyLoss)
    copied: Any = clone(net)
    assert copied.get_params()["criterion"] is nn.CrossEntropyLoss
    assert torch.equal(copied.get_params()["criterion__weight"], WEIGHT)
    assert_same(net.fit(X, Y), copied.fit(X, Y))
    grid = {"criterion__label_smoothing": [0.0, 0.3]}
    best: Any = GridSearchCV(classifier(criterion__label_smoothing=0.1), grid, cv=2).fit(X, Y)
    assert_same(best.best_estimator_, classifier(**best.best_params_).fit(X, Y))
    assert not torch.equal(state_of(classifier(**best.best_params_).fit(X, Y))[0], state_of(net)[0])
    other: Any = FPTTRegressor(**SMALL).set_params(criterion=nn.L1Loss).fit(X, X.mean(1))
    assert_same(other, FPTTRegressor(**SMALL, criterion=nn.L1Loss).fit(X, X.mean(1)))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (FPTTClassifier, {"criterion": nn.NLLLoss}, "criterion must be a loss of logits and class numbers.*NLLLoss"),
        (FPTTClassifier, {"criterion": nn.MSELoss}, "criterion must be a loss of logits and class numbers.*MSELoss"),
        (FPTTClassifier, {"criterion__reduction": "sum"}, "reduction 'mean' or 'none', got 'sum'"),
        (FPTTRegressor, {"criterion": nn.CrossEntropyLoss}, "criterion must be a loss of numbers.*CrossEntropyLoss"),
        (FPTTRegressor, {"criterion": nn.BCEWithLogitsLoss}, "criterion must be a loss of numbers.*BCEWithLogits"),
    ],
)
def test_a_criterion_that_does_not_fit_is_named(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**SMALL, **settings).fit(X, Y if kind is FPTTClassifier else X.mean(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be a class of optimizers, .* got 'adam'"),
        ({"lr": "a"}, "lr must be a number, got 'a'"),
        (
            {"criterion": functional.cross_entropy},
            "criterion must be a class of losses, .* got <function cross_entropy",
        ),
        ({"criterion": "cross_entropy"}, "criterion must be a class of losses, .* got 'cross_entropy'"),
        ({"criterion__smoothing": 0.1}, "unexpected keyword argument 'smoothing'"),
    ],
)
def test_a_setting_of_another_kind_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        classifier(**settings).fit(X, Y)


@pytest.mark.parametrize("kind", [FPTTClassifier, FPTTRegressor])
def test_arrays_that_are_read_only_are_copied(kind: Any) -> None:
    """Torch warns of them, but once in a process: so the arrays are asked that it is given."""
    own = X.copy(), (Y if kind is FPTTClassifier else X.mean(1)).copy()
    expected = kind(**SMALL).fit(*own)
    for array in own:
        array.flags.writeable = False
    net = kind(**SMALL).fit(*own)
    sequences, _, targets = net._checked(*own)
    assert sequences.flags.writeable
    assert net._numbers_of(targets).flags.writeable
    assert_same(net, expected)


def test_labels_of_steps_may_come_in_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    y = np.where(X > 0, "up", "down")
    expected = classifier(per_step=True).fit(X, y)
    frame = pandas.DataFrame(y, columns=[f"step {number}" for number in range(T)])
    net = classifier(per_step=True).fit(X, frame)
    assert_same(expected, net)
    assert net.score(X, frame) == expected.score(X, y)


def test_saved_parameters_are_not_loaded_into_a_net_without_sizes(tmp_path: Path) -> None:
    net = classifier().fit(X, Y)
    net.save_params(f_params=str(tmp_path / "params"), f_history=str(tmp_path / "history"))
    with pytest.raises(ValueError, match="FPTTClassifier must be fitted before load_params"):
        classifier().load_params(f_params=str(tmp_path / "params"))
    fresh = classifier()
    fresh.load_params(f_history=str(tmp_path / "history"))
    assert len(fresh.history) == 2
