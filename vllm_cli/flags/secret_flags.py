"""Masks keys and tokens of the command line, which other users of the machine can see."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Final

from startup.command_line import mask_in_command_line
from vllm_cli.flags.arguments import GivenFlag
from vllm_cli.flags.flag import Shape, SupportedFlag
from vllm_cli.flags.supported import SUPPORTED

_SHORTEST_NAME: Final = len("--hf-t")
"""vLLM accepts abbreviated flags; a shorter one could be another flag."""


def hide_secrets(given_flags: Iterable[GivenFlag]) -> Iterator[str]:
    """Masks the secrets in the command line, and yields a line per flag that recommends a safer place."""
    values = {g.flag: g.values for g in given_flags if isinstance(g.flag, SupportedFlag) and g.flag.is_secret}
    for flag, state in _mask(values):
        places = " or ".join(_safer_places(flag))
        yield f"{flag.name} on the command line {state}, and shells record it: prefer {places}."


def hide_secrets_of_vllm(words: Sequence[str]) -> Iterator[str]:
    """The same for a command line of vLLM, which has no --api-key-file; vLLM gets the unmasked words."""
    values: dict[SupportedFlag, list[str]] = {}
    for index, word in enumerate(words):
        name, is_attached, value = word.partition("=")
        if (flag := _secret_flag(name)) is not None:
            following = takewhile(lambda other: not other.startswith("-"), words[index + 1 :])
            given = [value] if is_attached else list(following)
            values.setdefault(flag, []).extend(given if flag.shape is Shape.LIST else given[:1])
    for flag, state in _mask(values):
        variable = flag.variable.name if flag.variable else "a file"
        yield f"{flag.name} on the command line {state}, and shells record it: prefer {variable}."


def _secret_flag(name: str) -> SupportedFlag | None:
    name = name.replace("_", "-")
    if len(name) < _SHORTEST_NAME:
        return None
    return next((flag for flag in SUPPORTED if flag.is_secret and flag.name.startswith(name)), None)


def _mask(values: Mapping[SupportedFlag, Sequence[str]]) -> Iterator[tuple[SupportedFlag, str]]:
    """Masks the values; yields each flag that has one, with a text about its visibility in `ps`."""
    flags = [flag for flag, given in values.items() if any(given)]
    if not flags:
        return
    is_masked = mask_in_command_line(value for flag in flags for value in values[flag])
    for flag in flags:
        yield flag, "was visible to every user until now" if is_masked else "is visible to every user"


def empty_key_notices(given_flags: Iterable[GivenFlag]) -> Iterator[str]:
    """A line for an empty --api-key, as an unset variable of a script gives: requests then need no key."""
    for g in given_flags:
        if g.flag.parameter == "api_key" and not any(g.values):
            yield f"{g.flag.name} is empty: requests need no key, unless a file or the variable contains one."


def _safer_places(flag: SupportedFlag) -> Iterator[str]:
    if flag.variable is not None:
        yield flag.variable.name
    if flag.parameter == "api_key":
        yield "--api-key-file"
