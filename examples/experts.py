"""A router shares digits out among experts; left to itself it sends most of them to a few.

Each digit goes to the two of eight small experts that softxp.topk_softmax picks, and their answers are mixed
by its weights. Whoever is picked learns, and is picked again: the load grows uneven. softxp.balance_loss,
beside the cross-entropy, shares it out evenly, and router_z_loss keeps the router's logits small; the digits
are told as well as before.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from _common import Adam, Library, Result, accuracy, digits, run, weights
from array_api_compat import array_namespace

import softxp

CHOSEN = 2


class Settings(NamedTuple):
    experts: int = 8
    hidden: int = 12
    steps: int = 300
    held_out: float = 0.25


def mixture(parameters: list[Any], X: Any) -> Any:
    """Router logits, gate (rows, experts), class logits; and the pullback of class and router logits to the parameters."""
    xp = array_namespace(X)
    R, W, b, V, c = parameters  # router (64, n), and n experts of one hidden layer: W (n, 64, h), V (n, h, 10)
    routed = X @ R
    chosen, to_routed = softxp.vjp(softxp.topk_softmax, routed, CHOSEN)
    _, indices = softxp.topk_softmax(routed, CHOSEN)
    slots = xp.astype(
        indices[:, :, None] == xp.arange(R.shape[1], dtype=indices.dtype), X.dtype
    )  # (rows, chosen, experts)
    gate = xp.sum(chosen[:, :, None] * slots, axis=1)
    # every expert answers every digit here; a large model would ask the chosen ones alone
    h = xp.tanh(X @ W + b[:, None, :])  # (experts, rows, h)
    answers = h @ V + c[:, None, :]
    weight = xp.permute_dims(gate, (1, 0))[:, :, None]
    logits = xp.sum(weight * answers, axis=0)

    def pullback(by_logits: Any, by_routed: Any) -> list[Any]:
        by_gate = xp.permute_dims(xp.sum(answers * by_logits, axis=2), (1, 0))
        through_gate, *_ = to_routed(xp.sum(by_gate[:, None, :] * slots, axis=2))
        by_answers = weight * by_logits
        by_h = (by_answers @ xp.permute_dims(V, (0, 2, 1))) * (1 - h**2)
        return [
            X.T @ (by_routed + through_gate),
            X.T @ by_h,
            xp.sum(by_h, axis=1),
            xp.permute_dims(h, (0, 2, 1)) @ by_answers,
            xp.sum(by_answers, axis=1),
        ]

    return routed, gate, logits, pullback


def step(adam: Adam, X: Any, labels: Any, balance: float, z: float) -> tuple[Any, Adam]:
    routed, _, logits, pullback = mixture(adam.parameters, X)
    loss, by_logits = softxp.value_and_grad(softxp.cross_entropy)(logits, labels)
    _, even = softxp.value_and_grad(softxp.balance_loss)(routed, CHOSEN)
    _, small = softxp.value_and_grad(softxp.router_z_loss)(routed)
    return loss, adam.step(pullback(by_logits, balance * even + z * small), rate=0.01)


def on(library: Library, s: Settings) -> Result:
    put = library.asarray
    X, X_test, labels, labels_test, mean = digits(s.held_out)
    X, X_test = X + mean, X_test + mean  # what all digits share draws a router to the same experts
    rows, shown = [], {}
    for name, balance, z in ("without", 0.0, 0.0), ("with", 0.1, 0.001):
        rng = np.random.default_rng(0)
        experts = [weights(rng, 64, s.hidden, 10) for _ in range(s.experts)]
        start = [0.1 * rng.normal(size=(64, s.experts)), *(np.stack(same) for same in zip(*experts, strict=True))]
        adam, learn = Adam.of(library, start), library.ready(partial(step, balance=balance, z=z))
        for _ in range(s.steps):
            _, adam = learn(adam, put(X), put(labels))
        routed, gate, logits, _ = mixture(adam.parameters, put(X_test))
        picked = library.asnumpy(gate) > 0
        load = picked.mean(axis=0)
        rows.append({
            "balance": name, "accuracy": accuracy(logits, put(labels_test)),
            "busiest": float(load.max()), "idlest": float(load.min()),
            "even is 2": float(softxp.balance_loss(routed, CHOSEN)),
            "z-loss": float(softxp.router_z_loss(routed)),
        })  # fmt: skip
        shown[name] = load, np.stack([picked[labels_test == d].mean(axis=0) for d in range(10)])
    return Result(rows, (rows, shown))


def draw(plt: Any, given: Any) -> Any:
    """Above, the share of digits that each expert gets; below, the same for each digit."""
    rows, shown = given
    figure, panels = plt.subplots(2, 2, figsize=(7.6, 5.6), sharex=True, sharey="row", height_ratios=(1, 1.4))
    image = None
    for (bars, map_), row, (name, (load, of)) in zip(panels.T, rows, shown.items(), strict=True):
        n = len(load)
        bars.bar(range(n), 100 * load, color="#7fb3d5")
        bars.axhline(100 * CHOSEN / n, color="#444444", lw=0.8, ls="--", label=f"even: {100 * CHOSEN / n:.0f} %")
        bars.set_title(f"{name} balance_loss: {row['accuracy']:.1%} right", size=9)
        image = map_.imshow(100 * of, vmin=0, vmax=100, cmap="YlGnBu", aspect="auto")
        map_.set(xlabel="expert")
        map_.set_xticks(range(n), [str(i + 1) for i in range(n)])
        map_.set_yticks(range(10))
    panels[0, 0].set_ylabel("held-out digits it gets, %")
    panels[0, 1].legend(fontsize=8)
    panels[1, 0].set_ylabel("digit")
    figure.colorbar(image, ax=panels[1], label="of these digits it gets, %")
    return figure


COLUMNS = {"balance": "", "accuracy": ".1%", "busiest": ".0%", "idlest": ".0%", "even is 2": ".2f", "z-loss": ".2f"}
QUICK = Settings(hidden=8, steps=60, held_out=0.7)


def main(argv: list[str] | None = None) -> dict[str, Result]:
    return run(__doc__ or "", on, draw, COLUMNS, Settings(), QUICK, argv=argv)


if __name__ == "__main__":
    main()
