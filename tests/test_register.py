"""Arrays of libraries that softxp does not know by name."""

import numpy as np
import pytest

import softxp
from softxp._backends._namespace import USED


def test_numpy_itself_as_a_namespace():
    """Whose sort does not know `descending`."""

    class Reading(np.ndarray):
        pass

    softxp.register(Reading, namespace=np, look=lambda condition: bool(np.any(condition)))
    x = np.random.default_rng(0).normal(size=(4, 6))
    there = x.view(Reading)
    for fn in (
        lambda x: softxp.topk_softmax(x, 2)[0],
        lambda x: softxp.mask_logits(x, top_k=2),
        lambda x: softxp.balance_loss(x, 2),
    ):
        np.testing.assert_allclose(fn(there), fn(x))
    with pytest.raises(IndexError):
        softxp.cross_entropy(there, np.full(4, 9).view(Reading))


class Boxed:
    """A stranger's array: numpy inside, of its own type, with its own namespace."""

    def __init__(self, value):
        self.value = np.asarray(value)

    dtype = property(lambda self: self.value.dtype)
    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    device = "box"

    def __getitem__(self, key):
        return Boxed(self.value[key])

    def __array_namespace__(self, api_version=None):
        return Namespace


def _lift(name):
    def call(self, *others):
        return Boxed(getattr(self.value, name)(*(o.value if isinstance(o, Boxed) else o for o in others)))

    return call


OPERATORS = [
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "eq",
    "ne", "lt", "le", "gt", "ge", "and", "or", "invert", "neg",
]  # fmt: skip
for _name in OPERATORS:
    setattr(Boxed, f"__{_name}__", _lift(f"__{_name}__"))
Boxed.__hash__ = None


class Namespace:
    """The array API's functions over Boxed; a class, as a namespace may be."""

    __name__ = "boxes"
    float32, float64, bool, int64 = np.float32, np.float64, np.bool, np.int64

    @staticmethod
    def _wrap(name):
        def call(*args, **kwargs):
            kwargs.pop("device", None)
            if isinstance(args[0], list):
                args = ([a.value for a in args[0]], *args[1:])
            return Boxed(getattr(np, name)(*(a.value if isinstance(a, Boxed) else a for a in args), **kwargs))

        return staticmethod(call)


for _name in set(USED) - {"float32", "float64", "bool", "int64"}:
    setattr(Namespace, _name, Namespace._wrap(_name))

X = np.random.default_rng(0).standard_normal((3, 300))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_unknown_conforming_array_is_served():
    labels = np.asarray([0, 299, 5])
    for got, want in [
        (softxp.softmax(Boxed(X)), softxp.softmax(X)),
        (softxp.log_softmax(Boxed(X.T), axis=0), softxp.log_softmax(X.T, axis=0)),
        (softxp.entmax(Boxed(X)), softxp.entmax(X)),
        (softxp.logsumexp(Boxed(X)), softxp.logsumexp(X)),
        (softxp.logcumsumexp(Boxed(X)), softxp.logcumsumexp(X)),
        (softxp.cross_entropy(Boxed(X), labels), softxp.cross_entropy(X, labels)),
        (softxp.value_and_grad(softxp.cross_entropy)(Boxed(X), Boxed(labels))[1],
         softxp.value_and_grad(softxp.cross_entropy)(X, labels)[1]),
    ]:  # fmt: skip
        assert isinstance(got, Boxed)
        np.testing.assert_allclose(got.value, want, rtol=1e-13)


def test_register_brings_kernels():
    class Fast(np.ndarray):
        pass

    def kernel(x, axis, where, temperature, dtype):
        return "kernel" if axis == -1 else NotImplemented

    softxp.register(Fast, namespace=np, name="fast", kernels={"softmax": kernel}, double=lambda x: True)
    x = X.view(Fast)
    assert softxp.softmax(x) == "kernel"
    np.testing.assert_allclose(softxp.softmax(x, axis=0), softxp.softmax(X, axis=0), rtol=1e-14)
    with pytest.raises(TypeError, match=r"where is from numpy, the first from fast"):
        softxp.softmax(x, axis=0, where=X > 0)


def test_register_refuses_unknown_words():
    with pytest.raises(TypeError, match="register knows"):
        softxp.register(Boxed, namespace=np, kernel={})
