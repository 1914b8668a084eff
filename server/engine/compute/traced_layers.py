"""Records the layers of a model as graphs of torch's operators, which run without Python, while requests run.

A graph has exactly the operators that the layer calls, so that its outputs have the same bits; each one is
compared with its layer before it is used. docs/dev/decisions.md has what Python's part of a token was.
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
from server.engine.features.vision import language_model

logger = logging.getLogger(__name__)

_EXAMPLE_TOKENS = (11, 1, 6)
"""Tokens of the passes whose inputs are recorded: the first is traced, the others are compared. In a trace, sizes
of 11 depend on the number of tokens."""
_CONSTANTS = (type(None), bool, int, float, str)
_PRODUCT = """
graph(%x, %weight, %bias):
  %output = vllm_cli::packed_linear(%x, %weight, %bias)
  return (%output)"""
_ONEDNN_PRODUCT = """
graph(%x, %weight, %bias):
  %post : str = prim::Constant[value="none"]()
  %scalars : Scalar?[] = prim::ListConstruct()
  %algorithm : str = prim::Constant[value=""]()
  %output = mkldnn::_linear_pointwise(%x, %weight, %bias, %post, %scalars, %algorithm)
  return (%output)"""


class LayerTracer:
    """Replaces the forwards of a model's layers, one at a time; used on the engine's thread.

    A layer keeps its forward if its graph would depend on more than the shapes of its inputs (routers of
    experts in a loop), and for calls whose other arguments differ from the recorded ones.
    """

    def __init__(self, model: PreTrainedModel, attention: PackedAttention, is_adapted: Callable[[], bool]) -> None:
        """`is_adapted` tells whether hooks of adapters are in place, which a graph would not call."""
        self._model = model
        self._attention = attention
        self._is_adapted = is_adapted
        self._calls: dict[torch.nn.Module, list[_Call]] = {}
        self._outputs: dict[torch.nn.Module, Any] = {}
        """Of the last recorded calls."""
        self._work: Iterator[None] | None = None
        self.num_traced = 0

    def trace_next(self) -> bool:
        """Records the inputs of all layers, traces one layer, or joins traced ones; False when none is left."""
        if self._work is None:  # not in the constructor, which delays the first token
            self._work = self._trace_all() if self._model.device.type == "cpu" else iter(())
        return next(self._work, self) is None

    def _trace_all(self) -> Iterator[None]:
        self._model.requires_grad_(requires_grad=False)  # or weights could not be constants
        # This thread runs graphs as recorded: optimizing takes 10 ms a layer, gains nothing and changes bits.
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
        for layers in self._rows():
            with torch.inference_mode(), self._attention.detached():
                row = _Row([layer.forward for layer in layers], self._calls[layers[0]][1])
            for layer in layers:
                layer.forward.row = row
            yield
        logger.debug("%d of %d layers run as graphs", self.num_traced, len(self._calls))
        self._calls.clear()
        self._outputs.clear()

    def _record_calls(self, num_tokens: int) -> None:
        """Passes tokens through the model, without most products, and records its layers' inputs."""

        def record(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.setdefault(module, []).append(_Call.of(args, kwargs))

        def record_output(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._outputs[module] = output

        tokens = torch.arange(num_tokens)[None]
        layers = [m for m in language_model(self._model).modules() if isinstance(m, GradientCheckpointingLayer)]
        hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
        hooks += [layer.register_forward_hook(record_output) for layer in layers]
        try:
            with torch.inference_mode(), self._attention.detached(), light_forward():
                self._model(input_ids=tokens, position_ids=tokens, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def _replace(self, layer: torch.nn.Module, calls: "list[_Call]") -> None:
        forward = layer.forward
        try:
            with torch.inference_mode(), self._attention.detached():
                traced = _trace(forward, calls[0], self._is_adapted)
                is_equal = all(torch.equal(traced(*call.args, **call.kwargs), call.run(forward)) for call in calls[1:])
        except Exception as err:  # noqa: BLE001 - whatever a tracer cannot do, the layer can
            logger.debug("%s is not traced: %s", type(layer).__name__, err)
            return
        if is_equal:
            layer.forward = traced
            self.num_traced += 1

    def _rows(self) -> list[list[torch.nn.Module]]:
        """Traced layers, each of which passes its output to the next; their other arguments are the same."""
        rows: list[list[torch.nn.Module]] = []
        before: torch.nn.Module | None = None
        for layer, calls in self._calls.items():
            if not isinstance(layer.forward, _TracedForward):
                before = None
                continue
            if before is not None and calls[-1].follows(self._calls[before][-1], self._outputs[before]):
                rows[-1].append(layer)
            else:
                rows.append([layer])
            before = layer
        return [row for row in rows if len(row) > 1]


class _Call(NamedTuple):
    """The arguments of a layer's call: tensors, and what must be the same in each call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[torch.Tensor]
    form: list[Any]
    """Names and values of the arguments, for tensors the number of dimensions."""

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

    def follows(self, other: "_Call", output: Any) -> bool:
        """Whether this is the call of the next layer: with the other's output, and its other arguments."""
        if not self.args or self.args[0] is not output or self.form != other.form:
            return False
        return all(mine is its for mine, its in zip(self.tensors[1:], other.tensors[1:], strict=True))

    def run(self, forward: Callable[..., Any], tensors: Seq[torch.Tensor] | None = None) -> Any:
        """Calls a function with these arguments, or with other tensors in place of theirs."""
        rest = iter(self.tensors if tensors is None else tensors)

        def fill(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(fill, value))
            return next(rest) if isinstance(value, torch.Tensor) else value

        args = [fill(value) for value in self.args]
        return forward(*args, **{name: fill(value) for name, value in self.kwargs.items()})


class _TracedForward:
    """A layer's forward: its graph, or what it replaces where the graph does not apply."""

    def __init__(
        self,
        graph: Callable[..., Any],
        weights: list[torch.Tensor],
        form: list[Any],
        forward: Callable[..., Any],
        is_adapted: Callable[[], bool],
    ) -> None:
        self.graph = graph
        self.weights = weights
        self._form = form
        self._forward = forward
        self._is_adapted = is_adapted
        self.row: _Row | None = None
        """Once all layers are traced."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.row is not None and args and self.row.pass_on(self, args[0]):
            return args[0]
        call = _Call.of(args, kwargs)
        if self._is_adapted() or call.form != self._form:
            return self._forward(*args, **kwargs)
        if self.row is not None and self.row.is_first(self):
            return self.row.run(call.tensors)
        return self.graph(*call.tensors, *self.weights)


class _Row:
    """Layers in a row as one graph: the first one's call computes all, those of the others pass the output on."""

    def __init__(self, forwards: list[_TracedForward], call: _Call) -> None:
        """Traces the layers' graphs with an example of the first one's arguments."""
        num_tensors = len(call.tensors)
        self._weights = [weight for forward in forwards for weight in forward.weights]

        def run(hidden: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
            weights = iter(inputs[num_tensors - 1 :])
            for each in forwards:
                hidden = each.graph(hidden, *inputs[: num_tensors - 1], *(next(weights) for _ in each.weights))
            return hidden

        self._graph = _record(run, [*call.tensors, *self._weights])
        self._first, *_, self._last = forwards
        self._output: torch.Tensor | None = None

    def is_first(self, forward: _TracedForward) -> bool:
        return forward is self._first

    def run(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """The output of the last layer for the arguments of the first one."""
        output: torch.Tensor = self._graph(*tensors, *self._weights)
        self._output = output
        return output

    def pass_on(self, forward: _TracedForward, hidden: object) -> bool:
        """Whether a layer's input is the output of them all, so that it is the layer's output, too."""
        if self._output is None or hidden is not self._output:
            return False
        if forward is self._last:
            self._output = None
        return True


def _trace(forward: Callable[..., Any], call: _Call, is_adapted: Callable[[], bool]) -> _TracedForward:
    """The graph of a layer; packed weights are among its inputs, because constants cannot be opaque.

    Raises:
        ValueError: the graph would hold for some inputs only.
    """
    if any(not isinstance(part, (*_CONSTANTS, tuple)) for part in call.form):
        raise ValueError(f"arguments {call.form}")
    define_operators()
    weights: list[torch.Tensor] = []

    def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *_: Any) -> Any:
        if not any(weight is each for each in weights):
            weights.append(weight)
        return torch.ops.vllm_cli.packed_linear(x, weight, bias)

    num_tensors = len(call.tensors)
    replacements = {_onednn_product(): multiply, torch.Tensor.shape.__get__: _sizes}
    with ReplacedFunctions(replacements):
        call.run(forward)
        graph = _record(lambda *inputs: call.run(forward, inputs[:num_tensors]), [*call.tensors, *weights])
    if weights:
        torch._C._jit_pass_custom_pattern_based_rewrite_graph(_PRODUCT, _ONEDNN_PRODUCT, graph.graph)
    return _TracedForward(graph, weights, call.form, forward, is_adapted)


def _record(function: Callable[..., Any], inputs: list[torch.Tensor]) -> Any:
    """The operators that a function calls for some inputs, as a function of all such inputs.

    Raises:
        ValueError: the inputs' values decided what was called.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = torch.jit.trace(function, tuple(inputs), check_trace=False)  # type: ignore[no-untyped-call]
    if found := [str(each.message) for each in caught if issubclass(each.category, TracerWarning)]:
        raise ValueError(found[0])
    return graph


def _sizes(x: torch.Tensor, *_: type) -> tuple[Any, ...]:
    """A tensor's shape with numbers for the sizes of the model, which a trace would compute in each call."""
    traced = x.shape
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        fixed = tuple(x.shape)
    finally:
        torch._C._set_tracing_state(state)
    return tuple(t if n == _EXAMPLE_TOKENS[0] else n for n, t in zip(fixed, traced, strict=True))


@cache
def define_operators() -> torch.library.Library:
    """Defines the operators that a trace contains in place of those that it cannot."""
    library = torch.library.Library("vllm_cli", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema, function in (
        ("packed_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _packed_linear),
        (
            "attend(Tensor query, Tensor key, Tensor value, int attention, int layer) -> Tensor",
            PackedAttention.attend_in,
        ),
    ):
        name = library.define(schema)  # type: ignore[no-untyped-call]
        library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return library


def _packed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class ReplacedFunctions(TorchFunctionMode):
    """While open, calls of some functions, without keywords, are calls of others."""

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
    """While open, linear layers return zeros: their weights, most of the model, are not read from memory."""
    return ReplacedFunctions({torch._C._nn.linear: _zeros, _onednn_product(): _zeros})


def _onednn_product() -> Any:
    """None in a torch without oneDNN."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _zeros(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_zeros(*x.shape[:-1], weight.shape[0])
