"""Export: the formula as an ONNX graph, run by onnxruntime, dynamic batch and corners included."""

import ndonnx as ndx
import numpy as np
import onnxruntime as ort
import pytest

import softxp

INF, NAN = float("inf"), float("nan")
DTYPES = {"float16": ndx.float16, "float32": ndx.float32, "float64": ndx.float64}
FUNCTIONS = {
    "softmax": lambda x, labels: softxp.softmax(x),
    "softmax, tempered": lambda x, labels: softxp.softmax(x, temperature=0.5),
    "log_softmax": lambda x, labels: softxp.log_softmax(x),
    "logsumexp": lambda x, labels: softxp.logsumexp(x, axis=-1),
    "cross_entropy": lambda x, labels: softxp.cross_entropy(x, labels, reduction="none", label_smoothing=0.125),
    "cross_entropy, mean": lambda x, labels: softxp.cross_entropy(x, labels),
}


def session(f, dtype):
    x = ndx.argument(shape=("batch", 6), dtype=DTYPES[dtype])
    labels = ndx.argument(shape=("batch",), dtype=ndx.int64)
    y = f(x, labels)
    model = ndx.build({"x": x, "labels": labels}, {"y": y})
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_exports_and_agrees(name, dtype):
    run = session(FUNCTIONS[name], dtype)
    feeds = {i.name for i in run.get_inputs()}
    for rows in (1, 5):  # one graph, any batch
        x = (np.random.default_rng(rows).standard_normal((rows, 6)) * 8).astype(dtype)
        labels = np.arange(rows) % 6
        if rows == 5 and "mean" not in name:
            x[0] = [40, 0, 0, 0, 0, 0]  # a tail that log(1 + r) would lose
            x[1], x[2, 1], x[3, 1] = -INF, INF, NAN
        (got,) = run.run(None, {k: v for k, v in {"x": x, "labels": labels}.items() if k in feeds})
        want = FUNCTIONS[name](x, labels)
        assert got.dtype == want.dtype
        rtol = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-45)


def test_a_label_out_of_range_is_nan():
    run = session(FUNCTIONS["cross_entropy"], "float32")
    (got,) = run.run(None, {"x": np.zeros((3, 6), "float32"), "labels": np.asarray([5, 6, -100])})
    assert np.isnan(got).tolist() == [False, True, False] and got[2] == 0
