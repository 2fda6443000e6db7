"""How the kernels are compiled, and the words for it that Numba lacks: addresses, bits, fma, aliases of memory."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit as _njit
from numba import types, version_info
from numba.core.compiler import Compiler
from numba.extending import intrinsic, register_jitable

if version_info < (0, 61):  # its pointers have no types of elements yet
    raise ImportError("the kernels need Numba 0.61 or later.")

# --- compiling -----------------------------------------------------------------------------------------------------------

KERNELS: dict[str, Any] = {}


def _age() -> tuple[float, int]:
    """Of the youngest file that kernels are made of, as Numba's cache keeps it: (time, size)."""
    files = [file.stat() for file in Path(__file__).parent.glob("*.py")]
    return max(file.st_mtime for file in files), sum(file.st_size for file in files)


def kernel(function: Any) -> Any:
    """Compiled at first use, kept on disk where that can be written."""
    how = dict(nogil=True, error_model="numpy", forceinline=False, fastmath=False)
    try:
        compiled = _njit(**how, cache=True)(function)
    except RuntimeError:  # there is no directory for the cache
        compiled = _njit(**how)(function)
    else:
        keep = compiled._cache.save_overload

        def keep_if_possible(*compiled_for: Any) -> None:
            with suppress(OSError):  # the directory is full, or was closed since
                keep(*compiled_for)

        compiled._cache.save_overload = keep_if_possible
        compiled._cache._cache_file._source_stamp = _age()  # not only of the file that the kernel stands in
    KERNELS[function.__name__] = compiled
    return compiled


try:
    from numba._dynfunc import make_function
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler_machinery import register_pass
    from numba.core.typed_passes import NativeLowering
except ImportError:  # a Numba of other insides: what follows only halves the time that compiling takes
    _PartCompiler = Compiler
else:

    class _Part(JITCodeLibrary):
        """Code that is only ever part of kernels: optimised and made machine code there, not for itself before."""

        def _optimize_final_module(self):
            pass

        def _finalize_final_module(self):
            self._finalized = True

    @register_pass(mutates_CFG=True, analysis_only=False)
    class _PartLowering(NativeLowering):
        _name = "part_lowering"

        def run_pass(self, state):
            state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
            state.flags.no_compile = True
            super().run_pass(state)
            part = state.cr
            name = make_function(part.fndesc.lookup_module(), part.fndesc.qualname, "", 0, part.env, ())
            state.targetctx.insert_user_function(name, part.fndesc, [state.library])
            state.cr = part._replace(cfunc=name)
            return True

    class _PartCompiler(Compiler):
        def define_pipelines(self):
            pipelines = super().define_pipelines()
            for pipeline in pipelines:
                pipeline.passes = [
                    (_PartLowering if step is NativeLowering else step, why) for step, why in pipeline.passes
                ]
                pipeline.finalize()
            return pipelines


# fastmath is said everywhere: unsaid, it is the caller's, and a sum's freedom to reorder would reach into `difference`
EXACTLY: dict[str, Any] = dict(
    pipeline_class=_PartCompiler, forceinline=True, fastmath=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
_CALLED = dict(EXACTLY, nogil=True, error_model="numpy", forceinline=False)
inlined: Any = _njit(nogil=True, error_model="numpy", **EXACTLY)
shared: Any = register_jitable(**EXACTLY)  # with Python
called: Any = _njit(**_CALLED)
summing: Any = _njit(**{**_CALLED, "fastmath": {"reassoc", "nsz"}})  # sums in vectors


# --- words -----------------------------------------------------------------------------------------------------------


@intrinsic
def at(typing: Any, address: Any, kind: Any) -> Any:
    """The memory at an address, as elements of this kind."""
    pointer = types.CPointer(kind)

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, kind), lower


@intrinsic
def address(typing: Any, pointer: Any) -> Any:
    """Of what a pointer points to."""
    return types.int64(pointer), lambda context, builder, signature, args: builder.ptrtoint(args[0], ir.IntType(64))


@intrinsic
def bits(typing: Any, value: Any) -> Any:
    """The same bits as an integer, or as a float."""
    to = {
        types.float32: types.int32,
        types.int32: types.float32,
        types.float64: types.int64,
        types.int64: types.float64,
        types.uint32: types.float32,
    }[value]

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(to))

    return to(value), lower


HALVES = bool(get_host_cpu_features().get("f16c"))  # instructions for float16, in vectors


@intrinsic
def from_half(typing: Any, bits_of_half: Any) -> Any:
    """The bits of a float16 as a float32."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(bits_of_half), lower


@intrinsic
def to_half(typing: Any, number: Any) -> Any:
    """A float32 as the bits of the nearest float16, ties to even."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(number), lower


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two, in one instruction. Beside a NaN either: the sum that follows will find it."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = args[0].type
        maximum = builder.module.declare_intrinsic("llvm.maxnum", [number], ir.FunctionType(number, [number, number]))
        return builder.call(maximum, args, fastmath=("nnan", "nsz"))

    return a(a, a), lower


@intrinsic
def past(typing: Any, pointer: Any, n: Any) -> Any:
    """The memory from element n on."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]], source_etype=context.get_value_type(pointer.dtype))

    return pointer(pointer, types.int64), lower


def _scope(builder: Any) -> Any:
    domain = builder.module.add_metadata(["tiles"])
    return builder.module.add_metadata([builder.module.add_metadata(["written", domain])])


@intrinsic
def take(typing: Any, pointer: Any, i: Any) -> Any:
    """pointer[i], where no `put` of another number of the loop changes it."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.gep(args[0], [args[1]], source_etype=context.get_value_type(pointer.dtype))
        value = builder.load(place, typ=context.get_value_type(pointer.dtype))
        value.set_metadata("noalias", _scope(builder))
        return value

    return pointer.dtype(pointer, types.int64), lower


@intrinsic
def put(typing: Any, pointer: Any, i: Any, value: Any) -> Any:
    """pointer[i] = value, in a loop that reads by `take`: they are the same numbers, or none of them."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.gep(args[0], [args[1]], source_etype=context.get_value_type(pointer.dtype))
        builder.store(args[2], place).set_metadata("alias.scope", _scope(builder))
        return context.get_dummy_value()

    return types.none(pointer, types.int64, pointer.dtype), lower


@intrinsic
def apart(typing: Any) -> Any:
    """The function that says so is called, not inlined: its loop has the registers to itself."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), lower


@intrinsic
def side(typing: Any, pointer: Any) -> Any:
    """How many numbers of this memory `turn` takes along each side."""
    size = 4 if pointer.dtype.bitwidth == 64 else 8
    return types.int64(pointer), lambda context, builder, signature, args: context.get_constant(types.int64, size)


@intrinsic
def turn(typing: Any, source: Any, source_step: Any, target: Any, target_step: Any) -> Any:
    """target[j * target_step + i] = source[i * source_step + j] for i and j < side, in vectors."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_step, target, target_step = args
        element = context.get_value_type(signature.args[0].dtype)
        n = 4 if signature.args[0].dtype.bitwidth == 64 else 8
        vector = ir.VectorType(element, n)

        def place(start: Any, step: Any, i: int) -> Any:
            here = builder.gep(start, [builder.mul(step, step.type(i))], source_etype=element)
            return builder.bitcast(here, vector.as_pointer())

        rows = [builder.load(place(source, source_step, i), align=1, typ=vector) for i in range(n)]
        d = 1
        while d < n:  # bit by bit, what a row's number says and what a column's says change places
            upper = ir.Constant(ir.VectorType(ir.IntType(32), n), [j if not j & d else n + j - d for j in range(n)])
            lower_ = ir.Constant(ir.VectorType(ir.IntType(32), n), [j + d if not j & d else n + j for j in range(n)])
            for i in range(n):
                if not i & d:
                    a, b = rows[i], rows[i + d]
                    rows[i] = builder.shuffle_vector(a, b, upper)
                    rows[i + d] = builder.shuffle_vector(a, b, lower_)
            d *= 2
        for i in range(n):
            builder.store(rows[i], place(target, target_step, i), align=1)
        return context.get_dummy_value()

    return types.none(source, types.int64, target, types.int64), lower
