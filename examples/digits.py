"""A classifier of handwritten digits is right more seldom than it says; one number, its temperature, mends that.

A small network learns 300 digits by heart with the gradient of softxp.cross_entropy, so on others it is too
sure of itself. softxp.fit_temperature finds the temperature on digits held out for that;
softxp.reliability_curve and expected_calibration_error say on yet others how far confidence is from accuracy,
before and after.
"""

from typing import Any, NamedTuple

import numpy as np
from _common import Adam, Library, Result, accuracy, digits, perceptron, run, weights

import softxp


class Settings(NamedTuple):
    hidden: int = 64
    steps: int = 300
    bins: int = 10


def step(adam: Adam, X: Any, labels: Any) -> tuple[Any, Adam]:
    logits, pullback = perceptron(adam.parameters, X)
    loss, by_logits = softxp.value_and_grad(softxp.cross_entropy)(logits, labels)
    gradients, _ = pullback(by_logits)
    return loss, adam.step(gradients, rate=0.01)


def on(library: Library, s: Settings) -> Result:
    data = digits(held_out=1497)
    X, others, labels, other_labels = map(library.asarray, data[:4])
    adam = Adam.of(library, weights(np.random.default_rng(0), X.shape[1], s.hidden, 10))
    learn = library.ready(step)
    for _ in range(s.steps):
        _, adam = learn(adam, X, labels)

    logits, _ = perceptron(adam.parameters, others)
    half = logits.shape[0] // 2
    temperature = softxp.fit_temperature(logits[:half, :], other_labels[:half])
    logits, labels = logits[half:, :], other_labels[half:]

    rows, curves = [], {}
    for T in 1.0, temperature:
        at: dict[str, Any] = dict(temperature=T, bins=s.bins)
        curves[T] = [library.asnumpy(a) for a in softxp.reliability_curve(logits, labels, **at)]
        rows.append({
            "temperature": T,
            "accuracy": accuracy(logits, labels),
            "loss": float(softxp.cross_entropy(logits, labels, temperature=T)),
            "calibration error": float(softxp.expected_calibration_error(logits, labels, **at)),
        })  # fmt: skip
    return Result(rows, list(zip(rows, curves.values(), strict=True)))


def draw(plt: Any, diagrams: Any) -> Any:
    """A panel for each temperature: how often predictions of a confidence are right. Truth is the diagonal."""
    figure, panels = plt.subplots(1, 2, figsize=(7.4, 3.6), sharey=True)
    for panel, (row, (confidence, right, count)), word in zip(panels, diagrams, ("before", "after"), strict=True):
        edges = np.linspace(0, 1, len(count) + 1)
        some = count > 0
        width = edges[1]
        panel.bar(
            edges[:-1][some],
            right[some],
            width,
            align="edge",
            color="#7fb3d5",
            edgecolor="white",
            label="accuracy in a bin, and its digits",
        )
        panel.plot([0, 1], [0, 1], color="#444444", lw=0.8, ls="--")
        panel.plot(
            confidence[some], right[some], "o", color="#c0392b", ms=4, clip_on=False, label="at its mean confidence"
        )
        for x, y, n in zip(edges[:-1][some] + width / 2, right[some], count[some], strict=True):
            panel.text(x, y + 0.015, f"{n:.0f}", ha="center", size=7, color="#444444")
        panel.set(xlim=(0, 1), ylim=(0, 1.08), xlabel="confidence, the largest probability")
        panel.set_title(
            f"{word}: T = {row['temperature']:.2f}, calibration error {row['calibration error']:.1%}", size=9
        )
    panels[0].set_ylabel("share of predictions that are right")
    panels[0].legend(loc="upper left", fontsize=8)
    return figure


COLUMNS = {"temperature": ".2f", "accuracy": ".1%", "loss": ".3f", "calibration error": ".1%"}


def main(argv: list[str] | None = None) -> dict[str, Result]:
    return run(__doc__ or "", on, draw, COLUMNS, Settings(), Settings(hidden=32, steps=150), argv=argv)


if __name__ == "__main__":
    main()
