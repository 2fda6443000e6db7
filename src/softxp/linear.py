"""linear_cross_entropy, whole or in shards of the vocabulary."""

from operator import index
from typing import Any, Literal

from . import _args as args
from . import _products as P
from ._backends import call, find
from ._op import Op, is_array, record
from .core import cross_entropy_values


def _arrays(backend: Any, hidden: Any, kernel: Any, bias: Any) -> tuple[Any, Any, Any]:
    hidden = args.array(backend, "hidden", hidden)
    kernel = args.array(backend, "kernel", args.companion(backend, "kernel", kernel, hidden))
    if kernel.ndim != 2 or hidden.ndim == 0 or not args.same_shape(kernel.shape[1:], hidden.shape[-1:]):
        raise ValueError(
            "kernel must be (vocabulary, h) beside hidden (..., h), got shapes "
            f"{tuple(kernel.shape)} and {tuple(hidden.shape)}; transpose a kernel of (h, vocabulary)."
        )
    if bias is not None:
        bias = args.array(backend, "bias", args.companion(backend, "bias", bias, hidden))
        if not args.same_shape(bias.shape, kernel.shape[:1]):
            raise ValueError(
                f"bias needs shape {tuple(kernel.shape[:1])}, one for each class, got {tuple(bias.shape)}."
            )
    return hidden, kernel, bias


def _chunks(chunk_size: Any) -> Any:
    return args.chunks(chunk_size, "rows", "rows, vocabulary")


def _logits(hidden: Any, kernel: Any, classes: int) -> Any:
    """What checks may ask of logits that are not there."""
    widest = kernel if args.dtype_name(kernel.dtype) == "float64" else hidden
    return args.Shaped(widest, (*hidden.shape[:-1], classes))


def _values(
    backend: Any, hidden: Any, kernel: Any, labels: Any, bias: Any, chunk_size: Any, where: Any, temperature: Any,
    label_smoothing: float, class_weight: Any, sample_weight: Any, ignore_index: int | None, z_loss: float,
    softcap: float | None, reduction: str, normalizer: Any, dtype: Any,
) -> dict[str, Any]:  # fmt: skip
    hidden, kernel, bias = _arrays(backend, hidden, kernel, bias)
    values = cross_entropy_values(
        backend, _logits(hidden, kernel, kernel.shape[0]), labels, -1, where, temperature, label_smoothing, class_weight,
        sample_weight, ignore_index, z_loss, softcap, reduction, normalizer, hidden.dtype if dtype is None else dtype,
    )  # fmt: skip
    del values["x"], values["axis"]
    return dict(values, hidden=hidden, kernel=kernel, bias=bias, chunk_size=_chunks(chunk_size))


LINEAR_CROSS_ENTROPY = Op(
    "linear_cross_entropy", _values, P.linear_cross_entropy, P.linear_cross_entropy_vjp, P.linear_cross_entropy_jvp,
    ("hidden", "kernel", "labels"), P.linear_cross_entropy_sweep,
)  # fmt: skip


@record(LINEAR_CROSS_ENTROPY)
def linear_cross_entropy(
    hidden: Any, kernel: Any, labels: Any, /, *, bias: Any = None, chunk_size: int | tuple[int, int] | None = None,
    where: Any = None, temperature: Any = 1.0, label_smoothing: float = 0.0, class_weight: Any = None,
    sample_weight: Any = None, ignore_index: int | None = -100, z_loss: float = 0.0, softcap: float | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean", normalizer: Any = None, dtype: Any = None,
) -> Any:  # fmt: skip
    """cross_entropy of hidden · kernelᵀ + bias, whose logits are never there whole.

        logits = hidden kernelᵀ + bias,   loss = cross_entropy(logits, labels)

    Parameters
    ----------
    hidden : array (..., h), real.
    kernel : array (vocabulary, h), real: a row for each class, as in torch.nn.Linear and in an embedding whose weights are
        shared, so that a part of the vocabulary lies in one piece.
    labels : integers (...); or real floats (..., vocabulary), distributions. As in cross_entropy.
    bias : array (vocabulary,) or None.
    chunk_size : rows of a tile of logits, or (rows, classes) to cut the vocabulary too. By default a tile of whole rows
        and its gradient take 32 MiB, or a quarter of the kernel's memory where that is more; where not even 32 rows
        fit, the vocabulary is cut. On CUDA it has at least 1024 rows, or h / 2 where that is more.
    where, temperature, label_smoothing, class_weight, sample_weight, ignore_index, z_loss, softcap, reduction, normalizer :
        as in cross_entropy, beside logits of shape (..., vocabulary).
    dtype : dtype of the answer. Default: that of hidden.

    Returns
    -------
    array () or, with reduction="none", (...). Corners as in cross_entropy.

    Raises
    ------
    IndexError, TypeError, ValueError : as cross_entropy; shapes of hidden, kernel and bias that do not fit.

    Notes
    -----
    Products in 32 bits (64 for 64), so 16-bit hidden and kernel are widened once; an entry of the gradient is rounded once
    to its array's dtype. torch's bfloat16 on CUDA, where its kernels are on, is multiplied as it is, with sums in 32 bits:
    the logits and the loss are as exact, and each logit's slope is rounded to bfloat16 before its products. Memory beside
    the arguments and gradients: one tile and its gradient. The error is that of the library's products, some ulp of the
    largest logit, and then cross_entropy's.

    Differentiable by hidden, kernel, bias and temperature. `value_and_grad(linear_cross_entropy, argnums=(0, 1))` and
    torch's backward make each tile once for value and gradients (twice where the vocabulary is cut); a derivative by
    another array raises TypeError.

    Source: Milakov & Gimelshein 2018, arXiv:1805.02867 (the fold over the vocabulary); Wijmans et al. 2024,
    arXiv:2411.09009 (a loss without its logits).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> rng = np.random.default_rng(0)
    >>> hidden, kernel, labels = rng.normal(size=(6, 4)), rng.normal(size=(10, 4)), np.arange(6)
    >>> whole = softxp.cross_entropy(hidden @ kernel.T, labels)
    >>> bool(np.isclose(softxp.linear_cross_entropy(hidden, kernel, labels, chunk_size=(2, 3)), whole))
    True
    >>> both = softxp.value_and_grad(softxp.linear_cross_entropy, argnums=(0, 1))
    >>> loss, (by_hidden, by_kernel) = both(hidden, kernel, labels)
    >>> by_kernel.shape
    (10, 4)
    """
    return call(
        LINEAR_CROSS_ENTROPY, hidden, kernel, labels, bias, chunk_size, where, temperature, label_smoothing, class_weight,
        sample_weight, ignore_index, z_loss, softcap, reduction, normalizer, dtype,
    )  # fmt: skip


class VocabularyShard:
    """linear_cross_entropy of a kernel of which each process, device or file holds some rows.

        state of the whole = merge(states of the shards)
        loss = loss(state),   gradient by hidden = Σ gradient(state) over the shards,   by kernel: each shard's own rows

    Parameters
    ----------
    hidden : array (..., h), the same for all shards.
    kernel : array (n, h): rows start to start + n of the kernel.
    labels : integers (...), of the whole vocabulary; or real floats (..., n), these classes' part of distributions.
    start : index of the kernel's first row in the vocabulary. vocabulary : how many classes there are in all.
    bias, where, class_weight : of these classes alone. All other options : as in linear_cross_entropy.

    Raises
    ------
    ValueError : rows that lie outside the vocabulary; a state that does not hold each class once (where that cannot be read
        on the host, the loss is NaN). Otherwise as linear_cross_entropy.

    Notes
    -----
    A state is a tuple of arrays (rows, 1), which any collective or file can carry, and merges in any order and grouping.
    Memory, accuracy and corners are those of linear_cross_entropy. Not recorded by an autograd: `value_and_grad` has the
    derivatives.

    Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (a loss over shards of the vocabulary).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> rng = np.random.default_rng(0)
    >>> hidden, kernel, labels = rng.normal(size=(6, 4)), rng.normal(size=(12, 4)), np.arange(6)
    >>> shards = [
    ...     softxp.VocabularyShard(hidden, kernel[i : i + 3], labels, start=i, vocabulary=12) for i in range(0, 12, 3)
    ... ]
    >>> whole = shards[0].merge(*(shard.state() for shard in shards))
    >>> bool(np.isclose(shards[0].loss(whole), softxp.linear_cross_entropy(hidden, kernel, labels)))
    True
    >>> loss, (by_hidden, by_kernel) = shards[0].value_and_grad(whole)
    >>> by_hidden.shape, by_kernel.shape
    ((6, 4), (3, 4))
    """

    def __init__(
        self, hidden: Any, kernel: Any, labels: Any, /, *, start: int, vocabulary: int, bias: Any = None,
        chunk_size: int | tuple[int, int] | None = None, where: Any = None, temperature: Any = 1.0,
        label_smoothing: float = 0.0, class_weight: Any = None, sample_weight: Any = None,
        ignore_index: int | None = -100, z_loss: float = 0.0, softcap: float | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean", normalizer: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        self.backend = backend = find(hidden)
        hidden, kernel, bias = _arrays(backend, hidden, kernel, bias)
        n, start, vocabulary = kernel.shape[0], index(start), index(vocabulary)
        if not 0 <= start <= start + n <= vocabulary:
            raise ValueError(
                f"the kernel's rows {start} to {start + n} must lie within the vocabulary of {vocabulary}; check start."
            )
        part = _logits(hidden, kernel, n)
        soft = (
            not isinstance(labels, int) and args.dtype_name(find(labels, "labels").adopt(labels).dtype) in args.FLOATS
        )
        values = cross_entropy_values(
            backend, part if soft else _logits(hidden, kernel, vocabulary), labels, -1, None, temperature, label_smoothing,
            None, sample_weight, ignore_index, z_loss, softcap, reduction, normalizer,
            hidden.dtype if dtype is None else dtype,
        )  # fmt: skip
        if not soft:
            ids = backend.arange(start + n, values["labels"].dtype, hidden)[start:]
            values["classes"] = backend.xp.reshape(ids, (1, n))
        del values["x"], values["axis"]
        self.values = dict(
            values, hidden=hidden, kernel=kernel, bias=bias, chunk_size=_chunks(chunk_size), vocabulary=vocabulary,
            where=args.mask(backend, where, part),
            class_weight=args.class_weight(backend, class_weight, part, (part.ndim - 1,)),
        )  # fmt: skip

    def state(self) -> P.State:
        """What these classes have to say of each row."""
        return self.backend.guard(P.shard_state)(self.backend.xp, **self.values)

    def merge(self, state: P.State, /, *more: P.State) -> P.State:
        """The state of all of them together, of shards with the same options."""
        join, whole = self.backend.guard(P.join), state
        temperature = P.of_values(self.backend.xp, self.values).temperature
        for state in more:
            whole = join(self.backend.xp, P.State(*whole), P.State(*state), temperature)
        return whole

    def loss(self, whole: P.State, /) -> Any:
        """The loss, given the state of the whole vocabulary: the same from every shard."""
        return self.backend.guard(P.linear_cross_entropy)(self.backend.xp, **self.values, state=self._whole(whole))

    def _whole(self, state: Any) -> P.State:
        vocabulary = self.values["vocabulary"]
        if not isinstance(state, tuple) or len(state) != len(P.State._fields):
            raise TypeError(f"a shard's loss needs the merged state of all shards, got {type(state).__name__}.")
        state = P.State(*state)
        if self.backend.look(lambda seen: seen != vocabulary, state.seen):
            raise ValueError(f"the state must hold all {vocabulary} classes once; merge the states of all shards.")
        return state

    def value_and_grad(self, whole: P.State, /, *, argnums: Any = (0, 1)) -> tuple[Any, Any]:
        """The loss, and gradients as softxp.value_and_grad gives them: by hidden what these classes add to it."""
        if self.values["reduction"] == "none":
            raise ValueError('value_and_grad needs a loss of one number, got reduction="none"; use "mean" or "sum".')
        asked = argnums if isinstance(argnums, tuple) else (argnums,)
        names = ["hidden" if a == 0 else "kernel" if a == 1 else a for a in asked]
        for a, name in zip(asked, names, strict=True):
            if not is_array(self.values.get(name)) or name not in P.MOVING:
                raise TypeError(
                    "a shard has derivatives by 0 (hidden), 1 (kernel), and bias and temperature where they are arrays, "
                    f"asked for one by {a!r}."
                )
        sweep = self.backend.guard(P.linear_cross_entropy_sweep)
        loss, out = sweep(self.backend.xp.call, self.backend.xp, tuple(names), **self.values, state=self._whole(whole))
        return loss, tuple(out[n] for n in names) if isinstance(argnums, tuple) else out[names[0]]
