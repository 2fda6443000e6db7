"""A language model of letters learns Shakespeare's sonnets, and then writes at several temperatures.

A small network guesses the next letter from those before it. Its last layer and loss are
softxp.linear_cross_entropy, whose logits are never there whole. softxp.sample then draws letter after letter:
of all, of the most probable (top_p), or of those that are not much less probable than the best (min_p). The
same numbers drawn give the same text on every library.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import Adam, Library, Result, console, perceptron, run, weights
from array_api_compat import array_namespace

import softxp

TEXT = (Path(__file__).parent / "data" / "sonnets.txt").read_text()
LETTERS = sorted(set(TEXT))
CODES = np.asarray([LETTERS.index(c) for c in TEXT])
HELD_OUT = TEXT.index("My mistress' eyes")  # the last three sonnets
TOLD = 0.5, 1.0, 2.0  # temperatures whose writing is shown in words
FILTERS: dict[str, dict[str, float]] = {"all": {}, "top_p 0.9": {"top_p": 0.9}, "min_p 0.1": {"min_p": 0.1}}


class Settings(NamedTuple):
    context: int = 5
    embedding: int = 16
    hidden: int = 96
    steps: int = 800
    batch: int = 256
    rows: int = 16
    letters: int = 160
    temperatures: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def one_hot(letters: Any, like: Any) -> Any:
    xp = array_namespace(like)
    every = xp.arange(len(LETTERS), dtype=letters.dtype)
    return xp.astype(letters[..., None] == every, like.dtype)


def network(parameters: list[Any], letters: Any) -> Any:
    """letters (rows, context) -> hidden (rows, h), and its pullback to the parameters before it."""
    embedding, *layer = parameters
    xp = array_namespace(embedding)
    seen = one_hot(letters, embedding)
    x = seen @ embedding
    flat, inner = perceptron(layer, xp.reshape(x, (x.shape[0], -1)))
    hidden = xp.tanh(flat)

    def pullback(ct: Any) -> list[Any]:
        gradients, by_x = inner(ct * (1 - hidden**2))
        by_x = xp.reshape(by_x, (-1, embedding.shape[1]))
        return [xp.reshape(seen, (-1, len(LETTERS))).T @ by_x, *gradients]

    return hidden, pullback


def step(adam: Adam, letters: Any, following: Any, rate: Any) -> tuple[Any, Adam]:
    *parameters, kernel = adam.parameters
    hidden, pullback = network(parameters, letters)
    both = softxp.value_and_grad(softxp.linear_cross_entropy, argnums=(0, 1))
    loss, (by_hidden, by_kernel) = both(hidden, kernel, following)
    return loss, adam.step([*pullback(by_hidden), by_kernel], rate)


def next_letter(parameters: list[Any], letters: Any, uniforms: Any, temperature: Any, **options: Any) -> Any:
    """The context moved on by one letter in each row."""
    xp = array_namespace(letters)
    *parameters, kernel = parameters
    hidden, _ = network(parameters, letters)
    drawn = softxp.sample(hidden @ kernel.T, uniforms, temperature=temperature, **options)
    return xp.concat([letters[:, 1:], xp.astype(drawn, letters.dtype)[:, None]], axis=1)


def written(library: Library, parameters: list[Any], s: Settings, options: dict[str, float]) -> dict[float, list[str]]:
    """For each temperature some rows of text, all after the end of the same sonnet."""
    put, draw = library.asarray, library.ready(partial(next_letter, **options))
    at = TEXT.index("Shall I compare thee")
    out = {}
    for T in s.temperatures:
        rng = np.random.default_rng(0)
        letters, texts = put(np.tile(CODES[at - s.context : at], (s.rows, 1))), []
        for _ in range(s.letters):
            letters = draw(parameters, letters, put(rng.random(s.rows)), put(np.asarray(T)))
            texts.append(library.asnumpy(letters)[:, -1])
        out[T] = ["".join(LETTERS[i] for i in row) for row in np.stack(texts, axis=1)]
    return out


def known_words(texts: list[str]) -> float:
    """The share of written words that are in the sonnets; the last of a row may be unfinished."""
    words = [w for text in texts for w in re.findall(r"[a-z'-]+", text.lower())[:-1]]
    known = set(re.findall(r"[a-z'-]+", TEXT.lower()))
    return sum(w in known for w in words) / len(words)


def on(library: Library, s: Settings) -> Result:
    put, rng = library.asarray, np.random.default_rng(0)
    windows = np.lib.stride_tricks.sliding_window_view(CODES, s.context + 1).copy()
    seen, held_out = windows[: HELD_OUT - s.context], windows[HELD_OUT:]
    embedding = rng.normal(size=(len(LETTERS), s.embedding))
    kernel = rng.normal(size=(len(LETTERS), s.hidden)) / s.hidden**0.5
    adam = Adam.of(library, [embedding, *weights(rng, s.context * s.embedding, s.hidden), kernel])
    learn, losses = library.ready(step), []
    for i in range(s.steps):
        batch = put(seen[rng.integers(len(seen), size=s.batch)])
        loss, adam = learn(adam, batch[:, :-1], batch[:, -1], put(np.asarray(0.006 * (1 - i / s.steps))))
        losses.append(float(loss))
    *parameters, kernel = adam.parameters
    held_out = put(held_out)
    hidden, _ = network(parameters, held_out[:, :-1])
    held_out_loss = float(softxp.linear_cross_entropy(hidden, kernel, held_out[:, -1]))

    texts = {name: written(library, adam.parameters, s, options) for name, options in FILTERS.items()}
    known = {name: {T: known_words(rows) for T, rows in of.items()} for name, of in texts.items()}
    rows: list[dict[str, str | float]] = [
        {"drawn from": name, "loss": sum(losses[-50:]) / 50, "held out": held_out_loss}
        | {f"T = {T:g}": of[T] for T in TOLD}
        for name, of in known.items()
    ]
    return Result(rows, (losses, held_out_loss, known, texts))


def excerpt(text: str) -> str:
    return "\n".join(line[:80] for line in text.strip().splitlines()[:2])


def draw(plt: Any, shown: Any) -> Any:
    losses, held_out, known, texts = shown
    figure, panels = plt.subplot_mosaic("ab;cc", figsize=(8.6, 6.4), height_ratios=(1, 1.05))
    panel = panels["a"]
    size = max(1, len(losses) // 60)
    smooth = np.asarray(losses[: len(losses) // size * size]).reshape(-1, size).mean(axis=1)
    panel.plot(np.arange(len(smooth)) * size + size / 2, smooth, label="batches, as it learns")
    panel.axhline(held_out, color="#c0392b", lw=1, label="three sonnets held out")
    panel.axhline(
        np.log(len(LETTERS)), color="#888888", lw=0.8, ls="--", label=f"{len(LETTERS)} letters, equally likely"
    )
    panel.set(xlabel="step", ylabel="cross-entropy, nats per letter", ylim=(0, None))
    panel.legend(fontsize=8, loc="lower left")
    panel = panels["b"]
    for name, of in known.items():
        panel.plot(list(of), [100 * v for v in of.values()], "o-", ms=3, label=name)
    panel.set(xlabel="temperature", ylabel="written words that the sonnets have, %", ylim=(0, 105))
    panel.legend(fontsize=8, title="letters drawn from", title_fontsize=8)
    panel = panels["c"]
    panel.set_axis_off()
    some = [(name, T) for T in TOLD for name in texts]
    for i, (name, T) in enumerate(some):
        y = 0.98 - i / len(some)
        words = dict(va="top", transform=panel.transAxes, parse_math=False, in_layout=False)
        panel.text(0, y, f"T = {T:g}, {name}", size=8, **words)
        panel.text(0.18, y, excerpt(texts[name][T][0]), size=7.5, family="monospace", **words)
    return figure


FULL, QUICK = Settings(), Settings(hidden=64, steps=200, letters=40, temperatures=TOLD)


def main(argv: list[str] | None = None) -> dict[str, Result]:
    columns = {"drawn from": "", "loss": ".2f", "held out": ".2f"} | {f"T = {T:g}": ".0%" for T in TOLD}
    results = run(__doc__ or "", on, draw, columns, FULL, QUICK, argv=argv)
    texts = next(iter(results.values())).shown[3]
    for T in TOLD:
        for name in FILTERS:
            console.print(f"[bold]T = {T:g}, {name}[/]", highlight=False)
            console.print(excerpt(texts[name][T][0]), highlight=False, markup=False)
    return results


if __name__ == "__main__":
    main()
