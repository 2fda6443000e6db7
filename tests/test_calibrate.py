"""fit_temperature beside its optimum and scikit-learn; perplexity; calibration error beside its definition."""

import numpy as np
import pytest

import softxp

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(300, 7)) * 2
LABELS = np.asarray([RNG.choice(7, p=p) for p in softxp.softmax(Z)])
ROWS = np.arange(300)


def slope(x, y, beta):
    """The derivative of the summed loss by 1 / T: Σ E[x] - x_y."""
    return np.sum(softxp.softmax(x * beta) * x) - np.sum(x[ROWS, y])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e200])
def test_the_temperature_is_the_best(scale):
    """T grows with the logits, and on both sides of it the loss falls towards it."""
    T = softxp.fit_temperature(Z * scale, LABELS)
    assert isinstance(T, float)
    np.testing.assert_allclose(T, scale * softxp.fit_temperature(Z, LABELS), rtol=1e-14)
    beta, near = scale / T, 1e-14
    assert slope(Z, LABELS, beta * (1 - near)) < 0 < slope(Z, LABELS, beta * (1 + near))


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_beside_scikit_learn(noise):
    calibration = pytest.importorskip("sklearn.calibration")
    x = noise * Z
    theirs = calibration._TemperatureScaling().fit(x, LABELS)
    # theirs bounds β within [e^-10, e^10] and looks at the loss, flat near its least: half the digits
    np.testing.assert_allclose(softxp.fit_temperature(x, LABELS), 1 / theirs.beta_, rtol=1e-7)


def test_any_library():
    torch, strict = pytest.importorskip("torch"), pytest.importorskip("array_api_strict")
    want = softxp.fit_temperature(Z, LABELS)
    assert softxp.fit_temperature(strict.asarray(Z), strict.asarray(LABELS)) == pytest.approx(want, rel=1e-14)
    assert softxp.fit_temperature(torch.tensor(Z, requires_grad=True), LABELS) == pytest.approx(want, rel=1e-14)
    assert softxp.fit_temperature(torch.tensor(Z).half(), torch.tensor(LABELS)) == pytest.approx(want, rel=1e-3)
    jax = pytest.importorskip("jax")
    assert softxp.fit_temperature(jax.numpy.asarray(Z), LABELS) == pytest.approx(want, rel=1e-6)
    with pytest.raises(TypeError, match=r"reads sums of the logits on the host.*outside of jit"):
        jax.jit(softxp.fit_temperature)(jax.numpy.asarray(Z), LABELS)


def test_the_answer_goes_into_temperature():
    T = softxp.fit_temperature(3 * Z, LABELS)
    best = softxp.cross_entropy(3 * Z, LABELS, temperature=T)
    for other in 0.97 * T, 1.03 * T:
        assert softxp.cross_entropy(3 * Z, LABELS, temperature=other) > best


def test_the_ends():
    eye = np.eye(3) * 2
    right, wrong = np.arange(3), np.asarray([1, 2, 0])
    assert softxp.fit_temperature(eye, right) == 0.0
    assert softxp.fit_temperature(eye, wrong) == np.inf
    assert softxp.fit_temperature(np.zeros((3, 3)), right) == 1.0
    assert softxp.fit_temperature(eye, np.full(3, -100)) == 1.0
    assert softxp.fit_temperature(eye[:0], right[:0]) == 1.0
    # ties at the top are right whichever the label
    assert softxp.fit_temperature(np.asarray([[1.0, 1.0, 0.0]]), np.asarray([1])) == 0.0
    # barely not separated: one row of 300 misled by a little
    x = np.where(LABELS[:, None] == np.arange(7), 1.0, 0.0)
    x[0] = np.where(np.arange(7) == (LABELS[0] + 1) % 7, 1.0, 0.0)
    T = softxp.fit_temperature(x, LABELS)
    assert slope(x, LABELS, (1 - 1e-12) / T) < 0 < slope(x, LABELS, (1 + 1e-12) / T)


def test_rows_and_classes_that_do_not_count():
    some = ROWS % 3 != 0
    want = softxp.fit_temperature(Z[some], LABELS[some])
    broken = np.where(some[:, None], Z, np.nan)
    assert softxp.fit_temperature(broken, np.where(some, LABELS, -100)) == pytest.approx(want, rel=1e-14)
    assert softxp.fit_temperature(broken, LABELS, sample_weight=some * 2.0) == pytest.approx(want, rel=1e-14)
    twice = softxp.fit_temperature(np.concatenate([Z, Z[some]]), np.concatenate([LABELS, LABELS[some]]))
    assert softxp.fit_temperature(Z, LABELS, sample_weight=1.0 + some) == pytest.approx(twice, rel=1e-13)
    masked = np.arange(7) < 5
    few = LABELS < 5
    want = softxp.fit_temperature(Z[few, :5], LABELS[few])
    assert softxp.fit_temperature(Z[few], LABELS[few], where=masked) == pytest.approx(want, rel=1e-14)
    across = softxp.fit_temperature(Z[few].T, LABELS[few], axis=0, where=masked[:, None])
    assert across == pytest.approx(want, rel=1e-14)


def test_labels_may_be_distributions():
    one_hot = (LABELS[:, None] == np.arange(7)).astype(float)
    assert softxp.fit_temperature(Z, one_hot) == pytest.approx(softxp.fit_temperature(Z, LABELS), rel=1e-14)
    # the softmax at T is matched by T
    assert softxp.fit_temperature(Z, softxp.softmax(Z, temperature=2.5)) == pytest.approx(2.5, rel=1e-14)


def test_losses_that_are_infinite():
    x = np.where(ROWS[:, None] == 4, -np.inf, Z)
    for bad in (x, np.where(ROWS[:, None] == 4, np.nan, Z)):
        with pytest.raises(ValueError, match="every row that counts needs a finite loss"):
            softxp.fit_temperature(bad, LABELS)
    # +inf at the label is a loss of 0 at any temperature
    x = np.where((ROWS[:, None] == 4) & (LABELS[:, None] == np.arange(7)), np.inf, Z)
    rest = ROWS != 4
    want = softxp.fit_temperature(Z[rest], LABELS[rest])
    assert softxp.fit_temperature(x, LABELS) == pytest.approx(want, rel=1e-13)


def test_perplexity():
    some = np.where(ROWS % 3 != 0, LABELS, -100)
    loss = softxp.cross_entropy(Z, some, temperature=1.5)
    np.testing.assert_allclose(softxp.perplexity(Z, some, temperature=1.5), np.exp(loss), rtol=1e-14)
    # the loss is not rounded to 16 bits before it is raised
    x = (Z * 4).astype(np.float16)
    want = softxp.perplexity(x.astype(np.float64), LABELS)
    assert softxp.perplexity(x, LABELS) == np.float16(want)
    assert softxp.perplexity(Z, np.full(300, -100)) == 1
    torch = pytest.importorskip("torch")
    t = torch.tensor(Z[:5], requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: softxp.perplexity(t, LABELS[:5]), t, nondet_tol=1e-14)


def by_definition(p, labels, weights, bins):
    """Row by row."""
    confidence, accuracy, count = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for row, label, w in zip(p, labels, weights, strict=True):
        b = max(int(np.ceil(row.max() * bins)) - 1, 0)
        confidence[b] += w * row.max()
        accuracy[b] += w * (np.argmax(row) == label)
        count[b] += w
    some = np.where(count == 0, 1, count)
    return confidence / some, accuracy / some, count


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_reliability(bins):
    p, w = softxp.softmax(Z, temperature=0.5), RNG.uniform(0.5, 2, 300) * (ROWS % 4 != 0)
    curve = softxp.reliability_curve(Z, LABELS, bins=bins, temperature=0.5, sample_weight=w)
    want = by_definition(p, LABELS, w, bins)
    for got, each in zip(curve, want, strict=True):
        np.testing.assert_allclose(got, each, rtol=1e-12)
    error = softxp.expected_calibration_error(Z, LABELS, bins=bins, temperature=0.5, sample_weight=w)
    np.testing.assert_allclose(error, np.sum(want[2] * np.abs(want[0] - want[1])) / np.sum(w), rtol=1e-12)
    across = softxp.reliability_curve(Z.T, LABELS, bins=bins, temperature=0.5, sample_weight=w, axis=0)
    for got, each in zip(across, curve, strict=True):
        np.testing.assert_allclose(got, each, rtol=1e-12)


def test_reliability_at_its_edges():
    # a confidence on an edge is in the bin below; the first of equal classes is the prediction; 1 is in the last bin
    x = np.asarray([[0.0, 0.0], [0.0, 0.0], [0.0, -np.inf]])
    curve = softxp.reliability_curve(x, np.asarray([0, 1, 0]), bins=2)
    np.testing.assert_array_equal(curve, [[0.5, 1.0], [0.5, 1.0], [2, 1]])
    # nothing to choose from: confidence 0, wrong
    curve = softxp.reliability_curve(np.full((1, 2), -np.inf), np.asarray([0]), bins=2)
    np.testing.assert_array_equal(curve, [[0, 0], [0, 0], [1, 0]])
    # distributions are right by their share
    curve = softxp.reliability_curve(x[:1], np.asarray([[0.25, 0.75]]), bins=1)
    np.testing.assert_array_equal(curve, [[0.5], [0.25], [1]])
    nan = np.where(ROWS[:, None] == 4, np.nan, Z)
    assert np.isnan(softxp.expected_calibration_error(nan, LABELS))
    dropped = np.where(ROWS == 4, -100, LABELS)
    want = softxp.expected_calibration_error(Z, dropped)
    assert softxp.expected_calibration_error(nan, dropped) == want > 0
    assert softxp.expected_calibration_error(Z, np.full(300, -100)) == 0
    for bins in 0, 2.5, True:
        with pytest.raises(ValueError, match="bins must be a positive int"):
            softxp.expected_calibration_error(Z, LABELS, bins=bins)


def test_calibrating_helps():
    x = 4 * Z
    T = softxp.fit_temperature(x, LABELS)
    before = softxp.expected_calibration_error(x, LABELS)
    after = softxp.expected_calibration_error(x, LABELS, temperature=T)
    assert after < before / 2


def test_traced():
    jax = pytest.importorskip("jax")
    got = jax.jit(softxp.expected_calibration_error)(jax.numpy.asarray(Z), LABELS)
    np.testing.assert_allclose(got, softxp.expected_calibration_error(Z, LABELS), rtol=1e-4)
