"""Keeps keys and tokens that were written on the command line from other users of the machine."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Final

from startup.command_line import mask_in_command_line
from vllm_cli.flags.flag import HonouredFlag, Shape
from vllm_cli.flags.honoured import API_KEY_FILE, HONOURED
from vllm_cli.serve.arguments import GivenFlag

_SHORTEST_NAME: Final = len("--hf-t")
"""What is shorter could be another flag of vLLM's, which takes flags' beginnings for the flags."""


def hide_secrets(given_flags: Iterable[GivenFlag]) -> Iterator[str]:
    """Takes them out of what `ps` shows, and yields one line that advises a better place for each flag's."""
    values = {g.flag: g.values for g in given_flags if isinstance(g.flag, HonouredFlag) and g.flag.is_secret}
    for flag, state in _mask(values):
        places = " or ".join(_better_places(flag))
        yield f"{flag.name} on the command line {state}, and shells keep it: prefer {places}."


def hide_secrets_of_vllm(words: Sequence[str]) -> Iterator[str]:
    """The same for a command line of vLLM's, which keeps its own; it has no file of keys."""
    values: dict[HonouredFlag, list[str]] = {}
    for index, word in enumerate(words):
        name, is_attached, value = word.partition("=")
        if (flag := _secret_flag(name)) is not None:
            following = takewhile(lambda other: not other.startswith("-"), words[index + 1 :])
            given = [value] if is_attached else list(following)
            values.setdefault(flag, []).extend(given if flag.shape is Shape.LIST else given[:1])
    for flag, state in _mask(values):
        variable = flag.variable.name if flag.variable else "a file"
        yield f"{flag.name} on the command line {state}, and shells keep it: prefer {variable}."


def _secret_flag(name: str) -> HonouredFlag | None:
    name = name.replace("_", "-")
    if len(name) < _SHORTEST_NAME:
        return None
    return next((flag for flag in HONOURED if flag.is_secret and flag.name.startswith(name)), None)


def _mask(values: Mapping[HonouredFlag, Sequence[str]]) -> Iterator[tuple[HonouredFlag, str]]:
    """The flags that hold something, each with who could see it."""
    flags = [flag for flag, given in values.items() if any(given)]
    if not flags:
        return
    is_masked = mask_in_command_line(value for flag in flags for value in values[flag])
    for flag in flags:
        yield flag, "was to be seen by every user until now" if is_masked else "can be seen by every user"


def secret_notices(given_flags: Iterable[GivenFlag]) -> Iterator[str]:
    """A line about an empty key, as an unset variable of a script leaves it: everybody would be let in."""
    for g in given_flags:
        if g.flag.parameter == "api_key" and not any(g.values):
            yield f"{g.flag.name} is empty: requests need no key, unless a file or the variable holds one."


def _better_places(flag: HonouredFlag) -> Iterator[str]:
    if flag.variable is not None:
        yield flag.variable.name
    if flag.parameter == "api_key":
        yield API_KEY_FILE.name
