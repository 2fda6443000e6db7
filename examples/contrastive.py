"""Which bottom belongs to this top? Halves of digits find each other.

Two small networks turn the upper and the lower half of a digit into vectors of length 1, and
softxp.contrastive_loss pulls the two of a pair together and all others apart; its temperature is learned with
them. Then each upper half of digits held out picks among all their lower halves: how often is its own the
best, or among the best five?
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from _common import Adam, Library, Result, digits, perceptron, run, weights
from array_api_compat import array_namespace

import softxp

Loss = Literal["infonce", "clip", "siglip"]
LOSSES: tuple[Loss, ...] = ("infonce", "clip", "siglip")


class Settings(NamedTuple):
    hidden: int = 96
    width: int = 24
    steps: int = 400
    batch: int = 256
    candidates: int = 200


def encoder(layers: list[Any], half: Any) -> Any:
    """Vectors of length 1, and their pullback to the layers."""
    xp = array_namespace(half)
    y, inner = perceptron(layers, half)
    length = xp.sqrt(xp.sum(y * y, axis=1, keepdims=True))
    y = y / length

    def pullback(ct: Any) -> list[Any]:
        return inner((ct - y * xp.sum(ct * y, axis=1, keepdims=True)) / length)[0]

    return y, pullback


def step(adam: Adam, top: Any, bottom: Any, loss: Loss) -> tuple[Any, Adam]:
    xp = array_namespace(top)
    *layers, log_temperature, bias = adam.parameters
    a, back_a = encoder(layers[: len(layers) // 2], top)
    b, back_b = encoder(layers[len(layers) // 2 :], bottom)
    temperature = xp.exp(log_temperature)
    by: tuple[Any, ...] = (0, 1, "temperature")
    options: dict[str, Any] = dict(temperature=temperature, loss=loss)
    if loss == "siglip":
        by, options = (*by, "bias"), dict(options, bias=bias)
    value, (by_a, by_b, by_temperature, *by_bias) = softxp.value_and_grad(softxp.contrastive_loss, argnums=by)(
        a, b, **options
    )
    others = [by_temperature * temperature, by_bias[0] if by_bias else xp.zeros_like(bias)]
    return value, adam.step([*back_a(by_a), *back_b(by_b), *others], rate=0.005)


def on(library: Library, s: Settings) -> Result:
    put = library.asarray
    X, X_test, *_, mean = digits()
    top, bottom = X_test[: s.candidates, :32], X_test[: s.candidates, 32:]
    rows, shown = [], {}
    for loss in LOSSES:
        rng = np.random.default_rng(0)
        sizes = 32, s.hidden, s.width
        start = [*weights(rng, *sizes), *weights(rng, *sizes), np.log([0.1]), np.asarray([-5.0])]
        adam, learn = Adam.of(library, start), library.ready(partial(step, loss=loss))
        value = float("nan")
        for _ in range(s.steps):
            batch = put(X[rng.permutation(len(X))[: s.batch]])
            value, adam = learn(adam, batch[:, :32], batch[:, 32:])
        *layers, log_temperature, _ = adam.parameters
        a, b = encoder(layers[:4], put(top))[0], encoder(layers[4:], put(bottom))[0]
        similarity = library.asnumpy(a @ b.T)
        rank = np.sum(similarity > np.diag(similarity)[:, None], axis=1)
        rows.append({
            "loss": loss, "ends at": float(value), "temperature": float(np.exp(library.asnumpy(log_temperature)[0])),
            "own first": float(np.mean(rank < 1)), "in first 5": float(np.mean(rank < 5)),
        })  # fmt: skip
        shown[loss] = similarity, rank
    pixels = X_test[: s.candidates] + mean
    return Result(rows, (shown, pixels))


def draw(plt: Any, shown: Any) -> Any:
    """Some upper halves with the lower halves they pick; and how far down the list their own is."""
    of, pixels = shown
    similarity, _ = of["clip"]
    figure = plt.figure(figsize=(9.4, 4.6))
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    some, best = range(0, 6), 6
    grid = left.subplots(len(some), best + 1)
    left.suptitle("an upper half, and the lower halves it picks (framed: its own)", size=9)
    for line, i in zip(grid, some, strict=True):
        order = np.argsort(-similarity[i])[:best]
        for panel, j in zip(line, [None, *order], strict=True):
            half = pixels[i, :32] if j is None else pixels[j, 32:]
            panel.imshow(half.reshape(4, 8), cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(j == i)
            panel.spines[:].set(color="#c0392b", linewidth=2.5)
            if j is not None:
                panel.set_xlabel(f"{similarity[i, j]:.2f}", size=7, labelpad=2)
    panel = right.subplots()
    n = len(pixels)
    for loss, (_, rank) in of.items():
        panel.plot(np.arange(1, n + 1), 100 * np.mean(rank[:, None] < np.arange(1, n + 1), axis=0), label=loss)
    panel.plot([1, n], [100 / n, 100], color="#888888", lw=0.8, ls="--", label="chance")
    panel.set(
        xscale="log", xlim=(1, n), ylim=(0, 101), xlabel=f"first k of {n} candidates", ylabel="own half among them, %"
    )
    panel.set_xticks([1, 2, 5, 10, 50, n], ["1", "2", "5", "10", "50", str(n)])
    panel.minorticks_off()
    panel.legend(fontsize=8, loc="lower right")
    return figure


COLUMNS = {"loss": "", "ends at": ".3f", "temperature": ".3f", "own first": ".1%", "in first 5": ".1%"}
QUICK = Settings(hidden=48, steps=60, batch=128)


def main(argv: list[str] | None = None) -> dict[str, Result]:
    return run(__doc__ or "", on, draw, COLUMNS, Settings(), QUICK, argv=argv)


if __name__ == "__main__":
    main()
