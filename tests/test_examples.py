"""What each example claims, with --quick: on numpy and torch, whose numbers must agree, and one on JAX."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

HOME = Path(__file__).parent.parent / "examples"
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def example(monkeypatch, tmp_path):
    """A function that runs an example and gives its rows, on the first library."""
    monkeypatch.syspath_prepend(str(HOME))

    def run(name, *backends):
        module, picture = importlib.import_module(name), tmp_path / f"{name}.svg"
        results = module.main(["--quick", "--out", str(picture), "--backend", *backends])
        assert len(results) == len(backends)
        assert picture.read_text().count("<path") > 10
        first = next(iter(results.values()))
        return first.rows, first.shown

    jax = sys.modules.get("jax")
    wide = jax and jax.config.jax_enable_x64
    yield run
    if "jax" in sys.modules:  # an example turns it on for good
        sys.modules["jax"].config.update("jax_enable_x64", bool(wide))
    for name in [n for n, m in sys.modules.items() if Path(getattr(m, "__file__", None) or "/").parent == HOME]:
        del sys.modules[name]


def test_digits(example):
    (before, after), _ = example("digits", "numpy", "torch")
    assert after["accuracy"] == before["accuracy"] > 0.9
    assert after["temperature"] > 1.1
    assert after["calibration error"] < 0.7 * before["calibration error"]
    assert after["loss"] < before["loss"]


def test_distillation(example):
    (teacher, labels, cold, warm), _ = example("distillation", "numpy", "torch")
    assert teacher["the digit 3"] > 0.8
    assert labels["the digit 3"] == 0
    assert warm["the digit 3"] > cold["the digit 3"] + 0.2
    assert warm["all digits"] > labels["all digits"]


def test_language_model(example):
    rows, (losses, _, known, texts) = example("language_model", "numpy", "torch")
    assert losses[0] > 3
    assert all(row["held out"] < 2.45 for row in rows)
    for of in known.values():
        assert of[0.5] > of[1.0] + 0.15
    assert known["min_p 0.1"][1.0] > 1.5 * known["all"][1.0]  # the rest is seldom a word
    assert len({tuple(of[1.0]) for of in texts.values()}) == 3


def test_attention_maps(example):
    (row,), (maps, tokens, *_) = example("attention_maps", "numpy", "torch", "jax")
    assert row["rows right"] > 0.99
    assert max(row["head 1 mirrors"], row["head 2 mirrors"]) > 0.95
    n = len(tokens)
    assert (maps[:, ~np.tri(n, dtype=bool)] == 0).all()
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-12)


def test_contrastive(example):
    rows, _ = example("contrastive", "numpy", "torch")
    chance = 1 / 200
    assert {row["loss"] for row in rows} == {"infonce", "clip", "siglip"}
    assert all(row["own first"] > 15 * chance and row["in first 5"] > 10 * 5 * chance for row in rows)
    assert all(abs(row["temperature"] - 0.1) > 5e-4 for row in rows)  # it is learned


def test_experts(example):
    (without, with_), _ = example("experts", "numpy", "torch")
    assert without["idlest"] < 0.02
    assert with_["idlest"] > 0.1
    assert with_["even is 2"] < 2.15 < 2.6 < without["even is 2"]
    assert with_["z-loss"] < without["z-loss"]
    assert with_["accuracy"] > max(0.88, without["accuracy"] - 0.02)


@pytest.mark.parametrize("name", ["attention_maps", "contrastive", "experts", "language_model"])
def test_derivatives_by_hand_are_those_of_autograd(example, name):
    torch = pytest.importorskip("torch")
    module, common = importlib.import_module(name), importlib.import_module("_common")
    rng = np.random.default_rng(0)

    def given(*arrays):
        return [torch.asarray(a).requires_grad_() for a in arrays]

    if name == "attention_maps":
        s = module.QUICK
        parameters = given(*module.start(rng, s))
        tokens, _ = module.rows_of_digits(rng, 3, s.length)
        y, pullback, _ = module.transformer(parameters, torch.asarray(tokens), s.heads)
        wanted = (torch.asarray(rng.normal(size=y.shape)),)
    elif name == "contrastive":
        parameters = given(*common.weights(rng, 6, 5, 4))
        y, pullback = module.encoder(parameters, torch.asarray(rng.normal(size=(7, 6))))
        wanted = (torch.asarray(rng.normal(size=y.shape)),)
    elif name == "experts":
        shapes = (6, 5), (5, 6, 3), (5, 3), (5, 3, 10), (5, 10)
        parameters = given(*(rng.normal(size=shape) for shape in shapes))
        routed, _, y, pullback = module.mixture(parameters, torch.asarray(rng.normal(size=(7, 6))))
        wanted = (torch.asarray(rng.normal(size=y.shape)), torch.asarray(rng.normal(size=routed.shape)))
        y = (y, routed)
    else:
        n = len(module.LETTERS)
        parameters = given(rng.normal(size=(n, 4)), *common.weights(rng, 12, 5))
        y, pullback = module.network(parameters, torch.asarray(rng.integers(n, size=(7, 3))))
        wanted = (torch.asarray(rng.normal(size=y.shape)),)
    truth = torch.autograd.grad(y, parameters, wanted)
    for mine, theirs in zip(pullback(*wanted), truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_table_stops_at_a_library_that_finds_something_else(example):
    common = importlib.import_module("_common")
    results = {
        n: common.Result([{"what": "same", "loss": v}], None) for n, v in [("numpy", 1.0), ("torch", 1.0 + 2e-6)]
    }
    with pytest.raises(SystemExit, match=r"torch should find numpy's loss, 1\.0, but finds 1\.000002"):
        common.agree(results, 1e-6)
    common.agree(results, 1e-5)
