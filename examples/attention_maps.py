"""A tiny transformer learns to write a row of digits backwards; its attention maps show how.

It reads some digits and a bar, and then writes them from the last to the first, each after the ones before
it: one causal layer of softxp.attention with two heads, a feed-forward layer, and the gradient of
softxp.cross_entropy. The weights that attention never keeps whole are drawn afterwards by softxp.softmax:
whoever writes looks at the mirrored place.
"""

from typing import Any, NamedTuple

import numpy as np
from _common import Adam, Library, Result, perceptron, run, weights
from array_api_compat import array_namespace

import softxp

DIGITS, BAR, IGNORED = 10, 10, -100


class Settings(NamedTuple):
    length: int = 8
    width: int = 32
    heads: int = 2
    steps: int = 150
    batch: int = 64
    tests: int = 200


def rows_of_digits(rng: np.random.Generator, rows: int, length: int) -> tuple[Any, Any]:
    """Tokens `3 1 4 | 4 1` and what follows each: nothing that can be known, up to the bar, and then `4 1 3`."""
    digits = rng.integers(DIGITS, size=(rows, length))
    backwards = digits[:, ::-1]
    tokens = np.concatenate([digits, np.full((rows, 1), BAR), backwards[:, :-1]], axis=1)
    following = np.concatenate([np.full((rows, length), IGNORED), backwards], axis=1)
    return tokens, following


def start(rng: np.random.Generator, s: Settings) -> list[Any]:
    places = 2 * s.length
    embedding, place = rng.normal(size=(DIGITS + 1, s.width)), rng.normal(size=(places, s.width))
    qkv, out = (
        rng.normal(size=(s.width, 3 * s.width)) / s.width**0.5,
        rng.normal(size=(s.width, s.width)) / s.width**0.5,
    )
    return [embedding, place, qkv, out, *weights(rng, s.width, 2 * s.width, s.width), *weights(rng, s.width, DIGITS)]


def transformer(parameters: list[Any], tokens: Any, heads: int) -> Any:
    """tokens (rows, n) -> logits (rows · n, digits), their pullback to the parameters, and q and k (rows, heads, n, d)."""
    embedding, place, qkv, out, *layers = parameters
    xp = array_namespace(embedding)
    (rows, n), width = tokens.shape, embedding.shape[1]

    def split(a: Any) -> Any:  # (rows · n, 3 · width) -> q, k, v of (rows, heads, n, d)
        a = xp.permute_dims(xp.reshape(a, (rows, n, 3, heads, width // heads)), (2, 0, 3, 1, 4))
        return a[0, ...], a[1, ...], a[2, ...]

    def joined(a: Any) -> Any:  # (rows, heads, n, d) -> (rows · n, width)
        return xp.reshape(xp.permute_dims(a, (0, 2, 1, 3)), (rows * n, width))

    seen = xp.astype(xp.reshape(tokens, (-1, 1)) == xp.arange(DIGITS + 1, dtype=tokens.dtype), embedding.dtype)
    x = seen @ embedding + xp.reshape(xp.broadcast_to(place, (rows, n, width)), (-1, width))
    q, k, v = split(x @ qkv)
    attended, to_qkv = softxp.vjp(softxp.attention, q, k, v, causal=True)
    mixed = joined(attended)
    y = x + mixed @ out
    more, to_feed_forward = perceptron(layers[:4], y)
    z = y + more
    logits, to_head = perceptron(layers[4:], z)

    def pullback(ct: Any) -> list[Any]:
        head, by_z = to_head(ct)
        feed_forward, by_y = to_feed_forward(by_z)
        by_y = by_y + by_z
        by_mixed = xp.permute_dims(xp.reshape(by_y @ out.T, (rows, n, heads, width // heads)), (0, 2, 1, 3))
        by_qkv = xp.concat([joined(a) for a in to_qkv(by_mixed)], axis=1)
        by_x = by_y + by_qkv @ qkv.T
        by_place = xp.sum(xp.reshape(by_x, (rows, n, width)), axis=0)
        return [seen.T @ by_x, by_place, x.T @ by_qkv, mixed.T @ by_y, *feed_forward, *head]

    return logits, pullback, (q, k)


def on(library: Library, s: Settings) -> Result:
    def step(adam: Adam, tokens: Any, following: Any) -> tuple[Any, Adam]:
        logits, pullback, _ = transformer(adam.parameters, tokens, s.heads)
        loss, by_logits = softxp.value_and_grad(softxp.cross_entropy)(logits, following, ignore_index=IGNORED)
        return loss, adam.step(pullback(by_logits), rate=0.01)

    put, rng, n = library.asarray, np.random.default_rng(0), s.length
    adam, learn, losses = Adam.of(library, start(rng, s)), library.ready(step), []
    for _ in range(s.steps):
        tokens, following = rows_of_digits(rng, s.batch, n)
        loss, adam = learn(adam, put(tokens), put(following.reshape(-1)))
        losses.append(float(loss))

    tokens, following = rows_of_digits(rng, s.tests, n)
    logits, _, (q, k) = transformer(adam.parameters, put(tokens), s.heads)
    told = library.asnumpy(logits).argmax(axis=1).reshape(s.tests, 2 * n)[:, n:]
    scores = (q @ array_namespace(q).permute_dims(k, (0, 1, 3, 2))) / q.shape[-1] ** 0.5
    seen = put(np.tri(2 * n, dtype=bool))
    maps = library.asnumpy(softxp.softmax(scores, where=seen)).mean(axis=0)  # (heads, queries, keys), of all rows
    writes = np.arange(n, 2 * n)
    mirrored = maps[:, writes, 2 * n - 1 - writes].mean(axis=1)
    right = told == following[:, n:]
    row = {"loss": losses[-1], "digits right": float(right.mean()), "rows right": float(right.all(axis=1).mean())}
    row |= {f"head {i + 1} mirrors": float(m) for i, m in enumerate(mirrored)}
    told_apart = max(range(s.tests), key=lambda i: len(set(tokens[i])))  # a row to label the map with
    return Result([row], (maps, tokens[told_apart], following[told_apart], losses))


def draw(plt: Any, shown: Any) -> Any:
    """A map for each head, rows are places that look and columns those looked at; beside them the loss."""
    maps, tokens, following, losses = shown
    names = ["|" if t == BAR else str(t) for t in tokens]
    n = len(tokens) // 2
    figure, panels = plt.subplots(
        1, len(maps) + 1, figsize=(3.5 * len(maps) + 3.4, 3.9), width_ratios=[1] * len(maps) + [0.8]
    )
    image = None
    for i, (panel, map_) in enumerate(zip(panels, maps, strict=False)):
        image = panel.imshow(map_, vmin=0, vmax=1, cmap="YlGnBu")
        panel.axhline(n - 0.5, color="#c0392b", lw=0.8)
        panel.set_xticks(range(2 * n), names, fontsize=7)
        panel.set_yticks(range(2 * n), [f"{a} → {b}" if b != IGNORED else a for a, b in zip(names, following, strict=True)],
                         fontsize=7)  # fmt: skip
        panel.set_xlabel("looks at")
        panel.set_title(f"head {i + 1}", size=9)
    panels[0].set_ylabel("at this token (→ writes)")
    figure.colorbar(image, ax=panels[:-1], label="attention, mean of all rows tried", shrink=0.8)
    panels[-1].plot(losses)
    panels[-1].set(xlabel="step", ylabel="cross-entropy, nats per digit", ylim=(0, None), xlim=(0, None))
    panels[-1].axhline(np.log(10), color="#888888", lw=0.8, ls="--")
    panels[-1].text(len(losses), np.log(10), "guessing", ha="right", va="bottom", size=8, color="#666666")
    return figure


COLUMNS = {"loss": ".4f", "digits right": ".1%", "rows right": ".1%", "head 1 mirrors": ".1%", "head 2 mirrors": ".1%"}
QUICK = Settings(length=6, steps=60)


def main(argv: list[str] | None = None) -> dict[str, Result]:
    return run(__doc__ or "", on, draw, COLUMNS, Settings(), QUICK, argv=argv)


if __name__ == "__main__":
    main()
