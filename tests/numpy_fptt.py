"""An independent transcription in NumPy, gradients worked out by hand: LSTM, terminal loss, SGD, Adam, FPTT."""

from dataclasses import dataclass, field

import numpy as np

Arrays = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_chunk(
    weights: Arrays, x: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[list[dict], np.ndarray, np.ndarray]:
    steps = []
    for x_t in x:
        gates = x_t @ weights["W"].T + h @ weights["U"].T + weights["bW"] + weights["bU"]
        i, f, g, o = np.split(gates, 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c_next = f * c + i * g
        steps.append({"x": x_t, "h": h, "c": c, "i": i, "f": f, "g": g, "o": o, "tanh_c": np.tanh(c_next)})
        h, c = o * np.tanh(c_next), c_next
    return steps, h, c


def terminal_loss(weights: Arrays, h: np.ndarray, labels: np.ndarray, b: float) -> tuple[float, np.ndarray]:
    """b · cross-entropy + (1 − b) · divergence to the uniform distribution, and its gradient in the logits."""
    logits = h @ weights["V"].T + weights["bV"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    target = b * np.eye(p.shape[1])[labels] + (1 - b) / p.shape[1]
    return -(target * np.log(p)).sum(1).mean(), (p - target) / len(labels)


def chunk_gradient(
    weights: Arrays, x: np.ndarray, state: tuple[np.ndarray, np.ndarray], labels: np.ndarray, b: float
) -> tuple[float, Arrays, tuple[np.ndarray, np.ndarray]]:
    steps, h, c = lstm_chunk(weights, x, *state)
    loss, d_logits = terminal_loss(weights, h, labels, b)
    gradient = {name: np.zeros_like(value) for name, value in weights.items()}
    gradient["V"], gradient["bV"] = d_logits.T @ h, d_logits.sum(0)
    d_h, d_c = d_logits @ weights["V"], np.zeros_like(c)
    for s in reversed(steps):
        d_o = d_h * s["tanh_c"]
        d_c = d_c + d_h * s["o"] * (1 - s["tanh_c"] ** 2)
        d_i, d_f, d_g = d_c * s["g"], d_c * s["c"], d_c * s["i"]
        d_gates = np.concatenate(
            [
                d_i * s["i"] * (1 - s["i"]),
                d_f * s["f"] * (1 - s["f"]),
                d_g * (1 - s["g"] ** 2),
                d_o * s["o"] * (1 - s["o"]),
            ],
            axis=1,
        )
        gradient["W"] += d_gates.T @ s["x"]
        gradient["U"] += d_gates.T @ s["h"]
        gradient["bW"] += d_gates.sum(0)
        gradient["bU"] += d_gates.sum(0)
        d_h, d_c = d_gates @ weights["U"], d_c * s["f"]
    return loss, gradient, (h, c)


@dataclass
class Optimizer:
    """What an optimizer takes off the weights for a gradient."""

    kind: str
    lr: float
    step: int = 0
    m: Arrays = field(default_factory=dict)
    v: Arrays = field(default_factory=dict)

    def move(self, gradient: Arrays) -> Arrays:
        if self.kind == "SGD":
            return {name: self.lr * g for name, g in gradient.items()}
        self.step += 1
        moves = {}
        for name, g in gradient.items():
            self.m[name] = 0.9 * self.m.get(name, 0.0) + 0.1 * g
            self.v[name] = 0.999 * self.v.get(name, 0.0) + 0.001 * g**2
            m_hat = self.m[name] / (1 - 0.9**self.step)
            v_hat = self.v[name] / (1 - 0.999**self.step)
            moves[name] = self.lr * m_hat / (np.sqrt(v_hat) + 1e-8)
        return moves


@dataclass
class Settings:
    form: str
    coupling: str
    alpha: float
    beta: float
    mu: float = 1.0
    previous_gradient: str = "dual"
    max_norm: float | None = None


def fptt_epoch(
    weights: Arrays,
    x: np.ndarray,
    labels: np.ndarray,
    lengths: list[int],
    *,
    optimizer: Optimizer,
    s: Settings,
    memory: dict,
) -> list[float]:
    """Walk once over a batch (T, B, D), updating weights and memory (average, previous gradient) in place."""
    if not memory:
        memory["average"] = {name: value.copy() for name, value in weights.items()}
        memory["previous"] = {name: np.zeros_like(value) for name, value in weights.items()}
    average, previous = memory["average"], memory["previous"]
    hidden = weights["U"].shape[1]
    state = (np.zeros((x.shape[1], hidden)), np.zeros((x.shape[1], hidden)))
    losses, start = [], 0
    for k, length in enumerate(lengths):
        part, b = x[start : start + length], (k + 1) / len(lengths)
        start += length
        incoming = state
        loss, gradient, state = chunk_gradient(weights, part, incoming, labels, b)
        losses.append(loss)
        half = 0.5 if s.form == "paper" else 1.0
        penalty = {n: s.mu * s.alpha * (weights[n] - average[n]) - half * previous[n] for n in weights}
        total = {n: gradient[n] + penalty[n] for n in weights} if s.coupling == "coupled" else gradient
        if s.max_norm is not None:
            norm = np.sqrt(sum((g**2).sum() for g in total.values()))
            total = {n: g * min(1.0, s.max_norm / (norm + 1e-6)) for n, g in total.items()}
        moves = optimizer.move(total)
        for n in weights:
            weights[n] = weights[n] - moves[n] - (penalty[n] if s.coupling == "decoupled" else 0.0)
        if s.previous_gradient == "recomputed":
            recomputed = chunk_gradient(weights, part, incoming, labels, b)[1]
            for n in weights:
                previous[n] = recomputed[n]
        else:
            for n in weights:
                previous[n] = previous[n] - s.alpha * (weights[n] - average[n])
        for n in weights:
            average[n] = (1 - s.beta) * average[n] + s.beta * weights[n] - s.beta / s.alpha * previous[n]
    return losses
