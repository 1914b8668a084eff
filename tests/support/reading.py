"""Compares how vLLM's parser and the launcher read the same arguments. Needs only the standard library."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from startup.settings.serve_arguments import ParsedOption
from startup.vllm_arguments.preflight.arguments import FlagValueError, parse_value
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import VllmRecord

_NOT_CONVERTED: Final = ("unknown", "object")
"""Kinds of values that the launcher does not convert as vLLM does."""


class Reading(NamedTuple):
    """The result of reading one command line."""

    is_accepted: bool
    """Whether vLLM's parser accepts the arguments."""
    faults: list[str]
    """The faults that the launcher finds."""
    differences: list[str]
    """The values that the launcher reads in another way than vLLM's parser."""


def read_both(arguments: Sequence[str], record: VllmRecord, parse: Callable[[Sequence[str]], Namespace]) -> Reading:
    line = VllmLine.of(arguments, record)
    faults = [*line.faults, *(option.typed for option in line.unknown), *line.others]
    values: dict[str, Any] = {}
    for option in line.options:
        try:
            values |= _converted(option)
        except FlagValueError as err:
            faults.append(str(err))
    try:
        namespace = parse(arguments)
    except (SystemExit, Exception):  # noqa: BLE001 - whatever vLLM raises
        return Reading(False, faults, [])
    model = getattr(namespace, "model_tag", None) or namespace.model
    with_model = {**values, "model": line.model or model}
    return Reading(True, faults, list(_differences(with_model, namespace, model)))


def _converted(option: ParsedOption) -> dict[str, Any]:
    flag = option.flag
    assert flag is not None
    if flag.nargs == 0:
        return {flag.parameter: option.is_on}
    values = [parse_value(flag, text) for text in option.values]
    if flag.kind in _NOT_CONVERTED or not values:
        return {}
    return {flag.parameter: values if flag.nargs == "+" else values[-1]}


def _differences(values: dict[str, Any], namespace: Namespace, model: str) -> Iterator[str]:
    for name, value in values.items():
        expected = model if name == "model" else getattr(namespace, name, value)
        if isinstance(expected, list) and not isinstance(value, list):  # each place adds a value
            expected = expected[-1]
        if value != expected and str(value) != str(expected):
            yield f"{name}: {value!r} instead of {expected!r}"
