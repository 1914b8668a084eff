"""Sorts out the flags that the embedded engine does not honour: some get a notice, some stop the start."""

from collections.abc import Iterable, Iterator

from startup.engine.cuda import has_gpu
from vllm_cli.errors import InputError
from vllm_cli.flags.flag import Flag, Shape
from vllm_cli.flags.table import HINT_REASONS, REFUSED_REQUESTS
from vllm_cli.serve.arguments import GivenFlag

_NOTHING = ("", "None")
"""How vLLM's command line spells a value that is not there."""


def refuse_impossible(given_flags: Iterable[GivenFlag]) -> None:
    """Raises InputError that names every flag which the embedded engine cannot do."""
    refused = [given for given in given_flags if given.flag in REFUSED_REQUESTS and not _is_harmless(given)]
    if refused:
        requests = "; ".join(f"{_shown(given)} asks for {REFUSED_REQUESTS[given.flag]}" for given in refused)
        raise InputError(f"Not possible with the embedded engine: {requests}. Use --engine vllm.")


def notices(given_flags: Iterable[GivenFlag]) -> Iterator[str]:
    """One line for each flag that has no effect."""
    for given in given_flags:
        reason = HINT_REASONS.get(given.flag) or _hardware_reason(given.flag)
        if reason and not _is_harmless(given):
            yield f"{_shown(given)} has no effect: {reason}."


def _is_harmless(given: GivenFlag) -> bool:
    harmless = (*_NOTHING, *given.flag.harmless)
    return all(any(_is_same(value, other) for other in harmless) for value in given.values)


def _is_same(value: str, other: str) -> bool:
    try:
        return float(value) == float(other)
    except ValueError:
        return value == other


def _shown(given: GivenFlag) -> str:
    if given.flag.shape is Shape.SWITCH:
        return given.words[0]
    return " ".join((given.flag.name, *given.values))


def _hardware_reason(flag: Flag) -> str | None:
    if flag.parameter == "gpu_memory_utilization" and not has_gpu():
        return "there is no GPU here, the KV cache is sized from free memory"
    return None
