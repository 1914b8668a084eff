"""Keeps keys and tokens that were written on the command line from other users of the machine."""

from collections.abc import Iterable, Iterator

from startup.command_line import mask_in_command_line
from vllm_cli.arguments import GivenFlag
from vllm_cli.flag import HonouredFlag
from vllm_cli.flags_honoured import API_KEY_FILE


def hide_secrets(given_flags: Iterable[GivenFlag]) -> Iterator[str]:
    """Takes them out of what `ps` shows, and yields one line that advises a better place for each flag's."""
    values = {g.flag: g.values for g in given_flags if isinstance(g.flag, HonouredFlag) and g.flag.is_secret}
    flags = [flag for flag, given in values.items() if any(given)]
    if not flags:
        return
    is_masked = mask_in_command_line(value for flag in flags for value in values[flag])
    state = "was to be seen by every user until now" if is_masked else "can be seen by every user"
    for flag in flags:
        places = " or ".join(_better_places(flag))
        yield f"{flag.name} on the command line {state}, and shells keep it: prefer {places}."


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
