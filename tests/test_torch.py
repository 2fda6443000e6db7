"""How softxp sits in torch: autograd of every kind, compile, vmap, the native road."""

import subprocess
import sys
import warnings

import pytest
import torch

import softxp

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def rand(*shape, seed=0):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)) + 0.5


LABELS = torch.tensor([1, 2, -100, 6])
MASK = rand(4, 7, seed=9) > 0.7
MASK[:, [1, 2, 6]] = True
SOFT = torch.softmax(randn(4, 7, seed=4), -1)
WEIGHTS = dict(label_smoothing=0.1, z_loss=0.1, softcap=3.0)

# every function by every argument that has a derivative
DERIVATIVES = {
    "softmax": (lambda x, t: softxp.softmax(x, temperature=t, where=MASK), randn(4, 7), rand(4, 1)),
    "softmax over two axes": (lambda x: softxp.softmax(x, axis=(0, 1)), randn(4, 7)),
    "log_softmax": (lambda x, t: softxp.log_softmax(x, temperature=t), randn(4, 7), rand(4, 1)),
    "sparsemax": (lambda x, t: softxp.sparsemax(x, temperature=t, where=MASK), randn(4, 7), rand(4, 1)),
    "entmax": (lambda x, t: softxp.entmax(x, temperature=t), randn(4, 7), rand(4, 1)),
    "entmax, alpha": (
        lambda x, a: softxp.entmax(x, alpha=1 + a, where=MASK),
        randn(4, 7),
        rand(4, 1, seed=5),
    ),
    "logsumexp": (lambda x: softxp.logsumexp(x, axis=1, where=MASK), randn(4, 7)),
    "logsumexp, b": (
        lambda x, b: softxp.logsumexp(x, b=b, axis=1, return_sign=True)[0],
        randn(4, 7),
        randn(4, 7, seed=1),
    ),
    "logmeanexp": (lambda x: softxp.logmeanexp(x, axis=(0, 1)), randn(4, 7)),
    "logcumsumexp": (lambda x: softxp.logcumsumexp(x), randn(4, 7)),
    "logcumsumexp, reverse": (lambda x: softxp.logcumsumexp(x, reverse=True, axis=0), randn(4, 7)),
    "normalizer": (
        lambda x, n: softxp.cross_entropy(x, LABELS, normalizer=n),
        randn(4, 7),
        torch.tensor(3.0, dtype=F64),
    ),
    **{
        f"cross_entropy, {reduction}": (
            lambda x, w, s, t, reduction=reduction: softxp.cross_entropy(
                x, LABELS, class_weight=w, sample_weight=s, temperature=t, where=MASK, reduction=reduction, **WEIGHTS
            ),
            randn(4, 7),
            rand(7, seed=1),
            rand(4, seed=2),
            rand(4, 1, seed=3),
        )
        for reduction in ("mean", "sum", "none")
    },
    **{
        f"soft labels, {reduction}": (
            lambda x, y, w, s, t, reduction=reduction: softxp.cross_entropy(
                x, y, class_weight=w, sample_weight=s, temperature=t, reduction=reduction, **WEIGHTS
            ),
            randn(4, 7),
            SOFT,
            rand(7, seed=1),
            rand(4, seed=2),
            rand(4, 1, seed=3),
        )
        for reduction in ("mean", "none")
    },
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_gradcheck(name):
    """Reverse, forward and batched, then the same of the derivative itself."""
    f, *arrays = DERIVATIVES[name]
    arrays = [a.clone().requires_grad_() for a in arrays]
    assert torch.autograd.gradcheck(f, arrays, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, arrays, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("x", [torch.zeros(3, dtype=F64), torch.tensor([1.0, 1.0, -2.0], dtype=F64)])
def test_second_derivatives_at_ties(x):
    """Where maxima tie, autograd through max and where would give another Hessian: ours is diag(p) - p pᵀ."""
    p = torch.softmax(x, 0)
    want = torch.diag(p) - p[:, None] * p
    for hessian in (torch.func.hessian, lambda f: torch.func.jacrev(torch.func.jacrev(f))):
        torch.testing.assert_close(hessian(softxp.logsumexp)(x), want)
        torch.testing.assert_close(hessian(lambda z: softxp.cross_entropy(z, 1))(x), want)
    third = torch.func.jacfwd(torch.func.hessian(softxp.logsumexp))(x)
    torch.testing.assert_close(third, torch.func.jacfwd(torch.func.hessian(lambda z: torch.logsumexp(z, 0)))(x))


def test_func_transforms():
    x = randn(5, 7)
    labels = torch.arange(5)
    one_by_one = torch.stack([softxp.softmax(row) for row in x])
    torch.testing.assert_close(torch.func.vmap(softxp.softmax)(x), one_by_one)
    each = torch.func.vmap(torch.func.grad(softxp.cross_entropy))(x, labels)
    torch.testing.assert_close(each, torch.softmax(x, -1) - torch.nn.functional.one_hot(labels, 7))
    for jac in (torch.func.jacrev, torch.func.jacfwd):
        p = torch.softmax(x[0], 0)
        torch.testing.assert_close(jac(softxp.softmax)(x[0]), torch.diag(p) - p[:, None] * p)


COMPILED = {
    "softmax": lambda x: softxp.softmax(x),
    "softmax, axis 0, tempered": lambda x: softxp.softmax(x, axis=0, temperature=2.0),
    "log_softmax": lambda x: softxp.log_softmax(x, temperature=x.detach().abs().amax(1, keepdim=True)),
    "logsumexp": lambda x: softxp.logsumexp(x, axis=(0, 1)),
    "logcumsumexp": lambda x: softxp.logcumsumexp(x),
    "cross_entropy": lambda x: softxp.cross_entropy(x, LABELS, label_smoothing=0.1, z_loss=1e-3),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_whole(name):
    """One graph, forward and backward, no break and no warning of ours; aot_eager traces as inductor does."""
    f = COMPILED[name]
    torch._dynamo.reset()
    x = randn(4, 7).float().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch's own, raised while it traces any autograd.Function (torch 2.13)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        y = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
        (got,) = torch.autograd.grad(y.sum() ** 2, x)
    want = f(x)
    torch.testing.assert_close(y, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, torch.autograd.grad(want.sum() ** 2, x)[0], rtol=1e-5, atol=1e-5)


def test_first_call_may_be_compiled():
    """Finding the backend is traced too."""
    code = (
        "import softxp, torch; f = torch.compile(softxp.softmax, fullgraph=True, backend='eager'); "
        "assert torch.allclose(f(torch.zeros(4)), torch.full((4,), 0.25))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "cross_entropy"])
def test_inductor_fuses_it_into_one_kernel(name):
    """max, subtract, exp, sum, divide and the corners: one pass over memory's worth of code, and one for the gradient."""
    from torch._inductor.utils import run_and_get_code

    f = {
        "softmax": softxp.softmax,
        "logsumexp": lambda x: softxp.logsumexp(x, axis=-1),
        "cross_entropy": lambda x: softxp.cross_entropy(x, torch.arange(64)),
    }[name]
    torch._dynamo.reset()
    x = torch.randn(64, 1000, requires_grad=True)
    _, graphs = run_and_get_code(lambda: torch.compile(f, fullgraph=True)(x).sum().backward())
    assert [graph.count('extern "C"') for graph in graphs] == [1, 1]


def test_native_softmax_is_used_only_where_it_is_right(monkeypatch):
    from softxp._backends import _warm, on_torch

    monkeypatch.setattr(_warm, "wanted", False)  # the road without Numba
    calls = []
    native = on_torch._native
    monkeypatch.setattr(on_torch, "_native", lambda *a, **k: calls.append(k) or native(*a, **k))
    softxp.softmax(torch.zeros(2, 8))
    assert calls == [{}]
    softxp.softmax(torch.zeros(2, 5000))  # long float32 rows are widened
    assert calls[-1] == {"dtype": torch.float64}
    softxp.softmax(torch.zeros(8, 2), axis=0)
    assert calls[-1] == {"dtype": torch.float64}
    calls.clear()
    softxp.softmax(torch.zeros(2, 8), temperature=2.0)
    softxp.softmax(torch.zeros(2, 5000, dtype=F64))
    assert not calls


def test_a_bad_row_is_repaired_and_its_neighbours_kept():
    inf = float("inf")
    x = torch.tensor([[1.0, 2.0], [-inf, -inf], [inf, inf], [inf, 0.0], [float("nan"), 0.0]])
    got = softxp.softmax(x)
    torch.testing.assert_close(got[0], torch.softmax(x[0], 0))
    torch.testing.assert_close(got[1:4], torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 0.0]]))
    assert got[4].isnan().all()


def test_true_class_in_bfloat16():
    """At p = 0.999 the label's gradient is p - 1 = -0.001, not the rounding of p."""
    x = torch.tensor([[6.9, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    softxp.cross_entropy(x, torch.tensor([0])).backward()
    want = torch.softmax(x.detach().double(), -1)[0, 1]
    assert abs(x.grad[0, 0].double() / -want - 1) < 2**-8
    assert x.grad.dtype is torch.bfloat16


@pytest.mark.parametrize("make", [torch.nn.Parameter, lambda x: x.as_subclass(type("Mine", (torch.Tensor,), {}))])
def test_subclasses(make):
    torch.testing.assert_close(
        softxp.softmax(make(torch.zeros(4))).detach().as_subclass(torch.Tensor), torch.full((4,), 0.25)
    )


def test_meta_tensors_keep_shapes():
    y = softxp.log_softmax(torch.empty(3, 5, device="meta"))
    assert y.shape == (3, 5) and y.device.type == "meta"


def test_two_devices_are_named():
    with pytest.raises(ValueError, match=r"where is on meta, the first on cpu"):
        softxp.softmax(torch.zeros(3), where=torch.ones(3, dtype=torch.bool, device="meta"))
