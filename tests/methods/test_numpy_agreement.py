"""Every form against the independent NumPy transcription, over 50 updates of a small LSTM, in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

import fptt
from tests.numpy_fptt import Arrays, Optimizer, Settings, fptt_epoch

T, B, D, H, C, K = 17, 3, 2, 5, 4, 5
NAMES = {
    "W": "rnn.weight_ih_l0",
    "U": "rnn.weight_hh_l0",
    "bW": "rnn.bias_ih_l0",
    "bU": "rnn.bias_hh_l0",
    "V": "readout.0.weight",
    "bV": "readout.0.bias",
}
SETTINGS = [
    Settings("paper", "coupled", alpha=0.3, beta=0.5),
    Settings("paper", "coupled", alpha=0.7, beta=0.5, previous_gradient="recomputed"),
    Settings("paper", "decoupled", alpha=0.4, beta=0.6),
    Settings("released", "coupled", alpha=0.2, beta=0.5),
    Settings("released", "coupled", alpha=0.35, beta=0.7, mu=2.0),
    Settings("released", "coupled", alpha=0.3, beta=0.5, max_norm=0.05),
    Settings("released", "decoupled", alpha=0.15, beta=0.5, max_norm=0.05),
    Settings("released", "decoupled", alpha=0.25, beta=0.8, mu=1.5),
]


def numpy_weights(model: torch.nn.Module) -> Arrays:
    return {short: model.get_parameter(name).detach().numpy().copy() for short, name in NAMES.items()}


@pytest.mark.parametrize("kernel", ["fused", "plain"])
@pytest.mark.parametrize("optimizer_name", ["SGD", "Adam"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.usefixtures("float64")
def test_equals_numpy(settings: Settings, optimizer_name: str, kernel: fptt.nn.Kernel) -> None:
    lr = 0.2 if optimizer_name == "SGD" else 0.01
    model = fptt.nn.LSTM(D, H, C, last_only=True, kernel=kernel)
    weights, memory = numpy_weights(model), {}
    reference = Optimizer(optimizer_name, lr)
    optimizer = getattr(torch.optim, optimizer_name)(model.parameters(), lr=lr)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    method = fptt.FPTT(model, optimizer, loss, num_chunks=K, **dataclasses.asdict(settings))
    for _ in range(10):
        inputs, labels = torch.randn(T, B, D), torch.randint(C, (B,))
        lengths = fptt.chunk_lengths(T, num_chunks=K)
        expected = fptt_epoch(
            weights, inputs.numpy(), labels.numpy(), lengths, optimizer=reference, s=settings, memory=memory
        )
        result = method.train_batch(inputs, labels)
        np.testing.assert_allclose(result.chunk_losses.numpy(), expected, rtol=1e-10, atol=1e-10)
    assert method.updates == 50
    assert method.regularizer is not None
    for short, name in NAMES.items():
        param = model.get_parameter(name)
        average, dual = method.regularizer.state[param]
        np.testing.assert_allclose(param.detach().numpy(), weights[short], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(average.numpy(), memory["average"][short], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(dual.numpy(), memory["previous"][short], rtol=1e-10, atol=1e-10)
