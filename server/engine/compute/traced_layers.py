"""Records a model's layers as graphs of torch's operators, while requests run. Graphs run without Python.

A graph calls the same operators as its layer, so its outputs have the same bits. Each graph is compared
with its layer before it is used. docs/dev/decisions.md has the time that Python takes without graphs.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.jit._trace import TracerWarning
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from server.engine.compute.attention import PackedAttention
from server.engine.vision import language_model

logger = logging.getLogger(__name__)

_EXAMPLE_TOKENS = (11, 1, 6)
"""The numbers of tokens in the example passes. The first pass is traced, and the other passes check the
graph. In a trace, every dimension of size 11 is taken for the number of tokens."""
_CONSTANTS = (type(None), bool, int, float, str)
_PRODUCT: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""A product of oneDNN, if this torch has it. A layer with any other opaque weight is not traced.

The product cannot be traced: it takes an empty list of scalars, and an opaque weight, whose layout in memory
only oneDNN knows. In a trace, an operator of this project (the stand-in) takes the product's place. The
stand-in has no list of scalars, and the weight is an input of the graph. `_insert_product` then replaces the
stand-in by the product.
"""
_OPERATORS = {
    "multiply(Tensor x, Tensor weight, Tensor? bias, str attr, str? algorithm) -> Tensor": (
        lambda x, weight, bias, attr, algorithm: _PRODUCT(x, weight, bias, attr, [], algorithm)
    ),
    "attend(Tensor query, Tensor key, Tensor value, int attention, int layer) -> Tensor": PackedAttention.attend_in,
}
"""Operators of this project. In a trace, they replace operators that cannot be traced."""


def _insert_product(graph: Any) -> None:
    """Replaces the stand-in in the graph by the product."""
    head, end = "graph(%x, %weight, %bias, %attr, %algorithm):", "return (%output)"
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(
        f"{head}\n  %output = vllm_cli::multiply(%x, %weight, %bias, %attr, %algorithm)\n  {end}",
        f"{head}\n  %scalars : Scalar?[] = prim::ListConstruct()\n"
        f"  %output = mkldnn::_linear_pointwise(%x, %weight, %bias, %attr, %scalars, %algorithm)\n  {end}",
        graph,
    )


class LayerTracer:
    """Replaces the `forward` of a model's layers by graphs, one layer at a time, on the engine's thread.

    A layer is not replaced if the operators that it calls depend on values of its inputs. An example is a
    layer that loops over the experts that its router has chosen. A replaced layer still runs its original
    `forward` in calls whose arguments other than tensors differ from the recorded arguments.
    """

    def __init__(self, model: PreTrainedModel, attention: PackedAttention) -> None:
        self._model = model
        self._attention = attention
        self._calls: dict[torch.nn.Module, list[_Call]] = {}
        self._num_traced = 0

    def trace(self) -> Iterator[None]:
        """Records the inputs of all layers, then traces the layers. Yields in between."""
        self._model.requires_grad_(requires_grad=False)  # otherwise weights could not be constants
        # This thread runs graphs as recorded. Optimizing takes 10 ms a layer, gains nothing and changes bits.
        torch._C._set_graph_executor_optimize(False)
        for num_tokens in _EXAMPLE_TOKENS:
            try:
                self._record_calls(num_tokens)
            except Exception as err:  # noqa: BLE001 - a model may refuse so few tokens, or plain attention
                logger.debug("no layer is traced: %s", err)
                return
            yield
        for layer, calls in self._calls.items():
            if len(calls) == len(_EXAMPLE_TOKENS):
                self._replace(layer, calls)
                yield
        logger.debug("%d of %d layers run as graphs", self._num_traced, len(self._calls))

    def _record_calls(self, num_tokens: int) -> None:
        """Passes tokens through the model without most products. Records its layers' inputs."""

        def record(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.setdefault(module, []).append(_Call.of(args, kwargs))

        layers = [m for m in language_model(self._model).modules() if isinstance(m, GradientCheckpointingLayer)]
        hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
        tokens = torch.arange(num_tokens)[None]
        try:
            with light_forward(), torch.inference_mode(), self._attention.detached():
                self._model(input_ids=tokens, position_ids=tokens, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def _replace(self, layer: torch.nn.Module, calls: "list[_Call]") -> None:
        forward = layer.forward
        try:
            with torch.inference_mode(), self._attention.detached():
                traced = _trace(forward, calls[0])
                is_equal = all(torch.equal(traced(*call.args, **call.kwargs), call.run(forward)) for call in calls[1:])
        except Exception as err:  # noqa: BLE001 - whatever a tracer cannot do, the layer can
            logger.debug("%s is not traced: %s", type(layer).__name__, err)
            return
        if is_equal:
            layer.forward = traced
            self._num_traced += 1


class _Call(NamedTuple):
    """The arguments of a layer's call: tensors, and values that must be the same in every call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[torch.Tensor]
    form: list[Any]
    """Names and values of the arguments. A tensor is represented by its number of dimensions and its type."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Call":
        tensors: list[torch.Tensor] = []
        form: list[Any] = [len(args), *kwargs]
        for value in (*args, *kwargs.values()):
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, torch.Tensor):
                    tensors.append(part)
                    form.append(("tensor", part.dim(), part.dtype))
                else:
                    form.append(part)
        return cls(args, kwargs, tensors, form)

    def run(self, forward: Callable[..., Any], tensors: Seq[torch.Tensor] | None = None) -> Any:
        """Calls a function with these arguments. `tensors`, if given, replace the recorded tensors."""
        rest = iter(self.tensors if tensors is None else tensors)

        def fill(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(fill, value))
            return next(rest) if isinstance(value, torch.Tensor) else value

        args = [fill(value) for value in self.args]
        kwargs = {name: fill(value) for name, value in self.kwargs.items()}
        return forward(*args, **kwargs)


class _TracedForward:
    """Replaces a layer's `forward`. Runs the graph, or the original `forward` if the graph does not apply."""

    def __init__(
        self,
        graph: Callable[..., Any],
        weights: list[torch.Tensor],
        form: list[Any],
        forward: Callable[..., Any],
    ) -> None:
        self.graph = graph
        self.weights = weights
        self._form = form
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = _Call.of(args, kwargs)
        if call.form != self._form:
            return self._forward(*args, **kwargs)
        return self.graph(*call.tensors, *self.weights)


def _trace(forward: Callable[..., Any], call: _Call) -> _TracedForward:
    """Traces a layer. Opaque weights become inputs of the graph, because constants cannot be opaque.

    Raises:
        ValueError: the graph would be right only for some inputs.
    """
    if any(not isinstance(part, (*_CONSTANTS, tuple)) for part in call.form):
        raise ValueError(f"arguments {call.form}")
    define_operators()
    weights: list[torch.Tensor] = []

    def multiply(x: Any, weight: torch.Tensor, bias: Any, attr: str, _scalars: Any, algorithm: str) -> Any:
        if not any(weight is each for each in weights):
            weights.append(weight)
        return torch.ops.vllm_cli.multiply(x, weight, bias, attr, algorithm)

    num_tensors = len(call.tensors)
    shape = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
    with ReplacedFunctions({_PRODUCT: multiply, shape: _sizes}):
        call.run(forward)
        graph = _record(lambda *inputs: call.run(forward, inputs[:num_tensors]), [*call.tensors, *weights])
    _insert_product(graph.graph)
    return _TracedForward(graph, weights, call.form, forward)


def _record(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Any:
    """Records the operators that a function calls for example inputs, and returns them as a function.

    Raises:
        ValueError: the called operators depend on values of the inputs.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = torch.jit.trace(function, tuple(inputs), check_trace=False)  # type: ignore[no-untyped-call]
    if found := [str(each.message) for each in caught if issubclass(each.category, TracerWarning)]:
        raise ValueError(found[0])
    return graph


def _sizes(x: torch.Tensor, *_: type) -> tuple[Any, ...]:
    """Returns a tensor's shape. In a trace, only the number of tokens varies, so a graph computes less."""
    traced = x.shape
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        fixed = tuple(x.shape)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
    return tuple(t if n == _EXAMPLE_TOKENS[0] else n for n, t in zip(fixed, traced, strict=True))


@cache
def define_operators() -> torch.library.Library:
    """Defines the operators of this project."""
    library = torch.library.Library("vllm_cli", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema, function in _OPERATORS.items():
        name = library.define(schema)  # type: ignore[no-untyped-call]
        library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return library


class ReplacedFunctions(TorchFunctionMode):
    """Replaces some of torch's functions in a `with` block. Keeps calls that have keyword arguments."""

    def __init__(self, replacements: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._replacements = replacements

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Seq[type],
        args: Seq[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        replacement = None if kwargs else self._replacements.get(function)
        return function(*args, **(kwargs or {})) if replacement is None else replacement(*args)


def light_forward() -> ReplacedFunctions:
    """Makes linear layers return zeros in a `with` block, so that most weights are not read from memory."""
    return ReplacedFunctions({torch._C._nn.linear: _zeros, _PRODUCT: _zeros})


def _zeros(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_zeros(*x.shape[:-1], weight.shape[0])
