"""A small network learns from a large one what a 3 looks like without ever seeing one.

A large network, the teacher, learns all digits. Small students then learn from the teacher's answers to
digits among which there is no 3: from the labels, or from softxp.distillation_loss at several temperatures. A
teacher that sees a 2, a 5 or an 8 says how much of a 3 is in it; at temperature 1 that share is too small to
be heard.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from _common import Adam, Library, Result, accuracy, digits, perceptron, run, weights

import softxp

UNSEEN = 3


class Settings(NamedTuple):
    teacher: int = 128
    student: int = 16
    steps: int = 300
    held_out: float = 0.25
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)


def by_labels(logits: Any, labels: Any) -> Any:
    return softxp.value_and_grad(softxp.cross_entropy)(logits, labels)


def by_teacher(logits: Any, teacher: Any, temperature: float) -> Any:
    return softxp.value_and_grad(softxp.distillation_loss)(logits, teacher, temperature=temperature)


def trained(library: Library, layers: list[Any], steps: int, loss_and_gradient: Any, X: Any, targets: Any) -> list[Any]:
    def step(adam: Adam, X: Any, targets: Any) -> Adam:
        logits, pullback = perceptron(adam.parameters, X)
        _, by_logits = loss_and_gradient(logits, targets)
        gradients, _ = pullback(by_logits)
        return adam.step(gradients, rate=0.01)

    adam, learn = Adam.of(library, layers), library.ready(step)
    for _ in range(steps):
        adam = learn(adam, X, targets)
    return adam.parameters


def on(library: Library, s: Settings) -> Result:
    put, rng = library.asarray, np.random.default_rng(1)
    X, X_test, labels, labels_test, mean = digits(s.held_out)
    seen, unseen_test = labels != UNSEEN, labels_test == UNSEEN

    large, small = weights(rng, 64, s.teacher, 10), weights(rng, 64, s.student, 10)
    teacher = trained(library, large, s.steps // 2, by_labels, put(X), put(labels))
    soft_targets, _ = perceptron(teacher, put(X[seen]))

    students: dict[str, list[Any]] = {
        "labels": trained(library, small, s.steps, by_labels, put(X[seen]), put(labels[seen]))
    }
    for T in s.temperatures:
        loss = partial(by_teacher, temperature=T)
        students[f"the teacher, T = {T:g}"] = trained(library, small, s.steps, loss, put(X[seen]), soft_targets)

    rows: list[dict[str, str | float]] = []
    for learned_from, layers in {"all labels: the teacher": teacher, **students}.items():
        right = [accuracy(perceptron(layers, put(x))[0], put(y)) for x, y in (
            (X_test, labels_test), (X_test[unseen_test], labels_test[unseen_test]))]  # fmt: skip
        rows.append({"learns from": learned_from, "all digits": right[0], f"the digit {UNSEEN}": right[1]})

    # the digit in which the teacher sees most of what the students never see
    p = library.asnumpy(softxp.softmax(soft_targets, temperature=s.temperatures[-1]))
    which = int(np.argmax(p[:, UNSEEN]))
    told = {T: library.asnumpy(softxp.softmax(soft_targets[which, :], temperature=T)) for T in s.temperatures}
    return Result(rows, (rows, X[seen][which] + mean, told))


def draw(plt: Any, shown: Any) -> Any:
    rows, pixels, told = shown
    figure, (image, soft, right) = plt.subplots(1, 3, figsize=(9.6, 3.2), width_ratios=(1, 2, 2.4))
    image.imshow(pixels.reshape(8, 8), cmap="gray_r")
    image.set_axis_off()
    image.set_title("a digit", size=9)

    colours = dict(zip(told, plt.get_cmap("YlGnBu")(np.linspace(0.35, 1, len(told))), strict=True))
    for i, T in enumerate(told):
        width = 0.8 / len(told)
        soft.bar(np.arange(10) - 0.4 + (i + 0.5) * width, told[T], width, color=colours[T], label=f"T = {T:g}")
    soft.set(xlabel="class", ylabel="probability")
    soft.set_xticks(range(10))
    soft.set_title("what the teacher says of it, by temperature", size=9)
    soft.legend(fontsize=8)

    names = [
        str(r["learns from"]).replace("all labels: the teacher", "(teacher)").replace("the teacher, ", "") for r in rows
    ]
    for i, column in enumerate(list(rows[0])[1:]):
        bars = right.bar(np.arange(len(rows)) + (i - 0.5) * 0.4, [r[column] for r in rows], 0.38, label=column,
                         color=("#b0b7bd", "#c0392b")[i])  # fmt: skip
        right.bar_label(bars, labels=[f"{100 * r[column]:.0f}" for r in rows], size=7)
    right.set_xticks(range(len(rows)), names, fontsize=8)
    right.set(ylabel="held-out accuracy", ylim=(0, 1.25), xlabel="what the student learned from")
    right.set_title(f"students that never saw a {UNSEEN}", size=9)
    right.legend(fontsize=8, ncols=2, loc="upper left")
    return figure


COLUMNS = {"learns from": "", "all digits": ".1%", f"the digit {UNSEEN}": ".1%"}
QUICK = Settings(teacher=48, steps=80, held_out=0.7, temperatures=(1.0, 8.0))


def main(argv: list[str] | None = None) -> dict[str, Result]:
    return run(__doc__ or "", on, draw, COLUMNS, Settings(), QUICK, argv=argv)


if __name__ == "__main__":
    main()
