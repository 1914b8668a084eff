"""A kernel that Triton compiles, described by names and values without the code or a binary.

Triton compiles a function once for each combination of argument types, constants and options. A description
has this combination as JSON values, so that another process or machine can compile the same kernel. Triton's
key of a kernel contains hashes of its source, of Triton and of the architecture. So a description that fits
no longer costs a needless compilation, and never leads to a wrong kernel.
"""

import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any, Final, NamedTuple

from startup.hook import Name
from startup.storage.caches import digest

REGISTRY: Final = Name("triton.runtime.jit", "_triton_jit_function_registry")
"""Triton's own table of functions, by `module:qualified name`. It is complete only for imported modules."""

_PLAIN: Final = (type(None), bool, int, float, str)
_CONSTANT: Final = "constexpr"
_MODEL: Final = "model"
_VOCABULARY: Final = "vocab_size"
_PER: Final = "per"
_DIVISORS: Final = {
    "vocab": 1,
    "logits_stride": 1,
    "bin_counts_stride": 1,
    "bin_mask_stride": 32,
    "local_argmax_stride": 1024,
    "local_max_stride": 1024,
}
"""Parts of the names of parameters of vLLM's sampler: by what the vocabulary's size is divided in them.

A bit of a mask stands for a token, and a block has 1024 of them. Whether 16 divides the value decides which
kernel is compiled.
"""
_POINTER_TO_MODEL: Final = "*model"
_USUAL_POINTER: Final = "*bf16"
_USUAL_SIZE: Final = 151936
_DIVISIBLE: Final = 16
"""Triton compiles a kernel of its own for integers that this number divides."""
_DTYPES: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class ModelTraits(NamedTuple):
    """What the kernels of vLLM's sampler depend on, of a model."""

    vocab_size: int | None = None
    dtype: str | None = None
    """`bfloat16`, `float16` or `float32`. None if it is not known."""

    @property
    def pointer(self) -> str:
        """Triton's type of a pointer to values of this type. Empty if the type is not known."""
        name = _DTYPES.get(self.dtype or "")
        return f"*{name}" if name else ""


@dataclass(frozen=True)
class Kernel:
    """One combination of types, constants and options for which Triton compiles a function."""

    module: str
    function: str
    """The qualified name in the module."""
    signature: Mapping[str, Any]
    """Parameter -> Triton's name of its type, in the order of the parameters."""
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    """The position of each argument that is compiled in, with its value."""
    attributes: tuple[tuple[tuple[int, ...], Any], ...]
    """The position of each argument of which Triton assumes something, with what it assumes."""
    options: Mapping[str, Any]
    """The options that differ from the architecture's defaults, such as `num_warps`."""
    compile_s: float = field(default=0.0, compare=False)
    """How long the compilation took. 0 if it is not known."""

    @property
    def id(self) -> str:
        """A hash of everything but the time."""
        return digest(json.dumps(asdict(replace(self, compile_s=0.0))))

    def __hash__(self) -> int:
        return hash(self.id)

    def for_any_model(self, traits: ModelTraits) -> "Kernel":
        """Returns the kernel with placeholders instead of values that this model determines."""
        constants, attributes = dict(self.constants), dict(self.attributes)
        if traits.vocab_size is not None:
            for number, name in enumerate(self.signature):
                path, divisor = (number,), self._divisor(name)
                if divisor == 1 and constants.get(path) == traits.vocab_size:
                    constants[path] = {_MODEL: _VOCABULARY}
                if divisor is not None and path in attributes and str(self.signature[name]).startswith("i"):
                    attributes[path] = {_MODEL: _VOCABULARY, _PER: divisor}
        signature = dict(self.signature)
        if traits.pointer and traits.dtype != "float32":  # kernels use this type for all models
            signature = {
                name: _POINTER_TO_MODEL if kind == traits.pointer else kind for name, kind in signature.items()
            }
        return replace(
            self, signature=signature, constants=tuple(constants.items()), attributes=tuple(attributes.items())
        )

    def for_model(self, traits: ModelTraits) -> "Kernel | None":
        """Returns the kernel with this model's values. None if it needs a value that is not known.

        For an unknown model, the values are those of most models.
        """
        pointer = traits.pointer if traits.dtype else _USUAL_POINTER
        signature = {name: pointer if kind == _POINTER_TO_MODEL else kind for name, kind in self.signature.items()}
        needs_size = any(_is_placeholder(value) for _, value in self.constants)
        if "" in signature.values() or (needs_size and traits.vocab_size is None):
            return None
        size = traits.vocab_size or _USUAL_SIZE
        constants = ((path, size if _is_placeholder(value) else value) for path, value in self.constants)
        attributes = (
            (path, _assumed(ceil(size / value.get(_PER, 1))) if _is_placeholder(value) else value)
            for path, value in self.attributes
        )
        return replace(self, signature=signature, constants=tuple(constants), attributes=tuple(attributes))

    def _divisor(self, parameter: str) -> int | None:
        """By what the size of the vocabulary is divided in this parameter. None if it is another value."""
        name = parameter.lower()
        found = next((divisor for part, divisor in _DIVISORS.items() if part in name), None)
        is_padded = "stride" in name and self.signature.get("logits_ptr") in (_POINTER_TO_MODEL, "*bf16", "*fp16")
        return None if found == 1 and is_padded else found


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, dict) and _MODEL in value


def _assumed(value: int) -> list[list[Any]]:
    """What Triton assumes of an integer."""
    return [["tt.divisibility", _DIVISIBLE]] if value % _DIVISIBLE == 0 else []


class UnknownKernelError(Exception):
    """A description does not lead to a kernel: its module or function is missing here."""


def describe(source: Any, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Kernel | None:
    """Describes what Triton compiles. None if it cannot be described, such as a function made by a function.

    Args:
        source: an `ASTSource`.
        options: all options of the compilation.
        defaults: the options that the architecture has by default.
    """
    function = source.fn
    name = f"{function.module}:{function.fn.__qualname__}"
    if REGISTRY.get().get(name) is not function:
        return None
    try:
        return Kernel(
            module=function.module,
            function=function.fn.__qualname__,
            signature={name: _listed(kind) for name, kind in source.signature.items()},
            constants=tuple((path, _encode(value)) for path, value in source.constants.items()),
            attributes=tuple((path, _listed(value)) for path, value in source.attrs.items()),
            options={
                name: _encode(value)
                for name, value in options.items()
                if name not in defaults or value != defaults[name]
            },
        )
    except TypeError:
        return None


def source_of(kernel: Kernel) -> Any:
    """Returns the `ASTSource` that `describe` has described. Imports the function's module.

    Raises:
        UnknownKernelError: there is no such function here, or it has other parameters.
    """
    from triton.compiler import ASTSource  # noqa: PLC0415 - this module is also used without Triton

    function = _find_function(f"{kernel.module}:{kernel.function}")
    if list(function.arg_names) != list(kernel.signature):
        raise UnknownKernelError(f"{kernel.function} of {kernel.module} has other parameters")
    return ASTSource(
        function,
        {name: _tupled(kind) for name, kind in kernel.signature.items()},
        {tuple(path): _decode(value) for path, value in kernel.constants},
        {tuple(path): value for path, value in kernel.attributes},
    )


def options_of(kernel: Kernel) -> dict[str, Any]:
    """The options for `triton.compile`. Triton adds the architecture's defaults."""
    return {name: _decode(value) for name, value in kernel.options.items()}


def unique(kernels: Iterable[Kernel | None]) -> Iterator[Kernel]:
    """Yields each kernel once, in the given order."""
    seen: set[str] = set()
    for kernel in kernels:
        if kernel is not None and kernel.id not in seen:
            seen.add(kernel.id)
            yield kernel


def _find_function(name: str) -> Any:
    module = name.partition(":")[0]
    if module not in sys.modules:
        try:
            importlib.import_module(module)
        except Exception as err:
            raise UnknownKernelError(f"{module} cannot be imported: {err}") from err
    function = REGISTRY.get().get(name)
    if function is None:
        raise UnknownKernelError(f"{module} has no kernel {name.partition(':')[2]}")
    return function


def _listed(value: Any) -> Any:
    """The value with lists instead of tuples, as JSON keeps it."""
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _encode(value: Any) -> Any:
    """The value as JSON. Raises TypeError for a value that `_decode` cannot restore."""
    if type(value) in _PLAIN:
        return value
    if type(value) is tuple:
        return {"tuple": [_encode(item) for item in value]}
    kind = type(value).__name__
    if kind == "dtype":
        return {"dtype": str(value)}
    if kind == _CONSTANT:
        return {_CONSTANT: _encode(value.value)}
    if kind == "JITFunction":
        return {"function": f"{value.module}:{value.fn.__qualname__}"}
    raise TypeError(f"{kind} cannot be described")


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    import triton.language as tl  # noqa: PLC0415 - as above

    ((kind, inner),) = value.items()
    if kind == "tuple":
        return tuple(_decode(item) for item in inner)
    if kind == "dtype":
        return tl.dtype(inner)
    if kind == _CONSTANT:
        return tl.constexpr(_decode(inner))
    if kind == "function":
        return _find_function(inner)
    raise UnknownKernelError(f"a constant of the unknown kind {kind}")
