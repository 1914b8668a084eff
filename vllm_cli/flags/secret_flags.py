"""Keys and tokens of a command line: recommends safer places, keeps them out of files and child processes."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from envs.redaction import is_secret_flag
from server.machine.command_line import is_visible
from vllm_cli.errors import InputError
from vllm_cli.flags.arguments import GivenFlag, is_flag_like
from vllm_cli.flags.flag import Flag, Shape, SupportedFlag
from vllm_cli.flags.supported import SUPPORTED
from vllm_cli.flags.table import find_flag, is_flag, normalise


class _Given(NamedTuple):
    """A flag with its words; `flag` is None for a positional and for a flag that is unknown here."""

    flag: Flag | None
    words: list[str]

    @property
    def values(self) -> list[str]:
        _, is_attached, value = self.words[0].partition("=")
        return [value] if is_attached else self.words[1:]


def without_flags(words: Iterable[str], names: Collection[str]) -> list[str]:
    """The words without these flags, in any spelling, and their values."""
    return [
        word for given in _split(words) if given.flag is None or given.flag.name not in names for word in given.words
    ]


def secrets_as_variables(words: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The words without secret flags, and the variables that a child process reads instead.

    The command line of a child is visible to every user until it has masked it. Several keys, which the
    variable cannot hold, stay.
    """
    kept: list[str] = []
    variables: dict[str, str] = {}
    for given in _split(words):
        flag = given.flag
        if isinstance(flag, SupportedFlag) and flag.is_secret and flag.variable is not None and len(given.values) == 1:
            variables[flag.variable.name] = given.values[0]
        else:
            kept += given.words
    return kept, variables


def secret_notices(words: Iterable[str], *, has_key_file: bool) -> Iterator[str]:
    """A line per flag whose secret value is visible to others.

    Args:
        words: the command line.
        has_key_file: whether the engine has --api-key-file.
    """
    values: dict[SupportedFlag, list[str]] = {}
    for given in _split(words):
        if isinstance(given.flag, SupportedFlag) and given.flag.is_secret and any(given.values):
            values.setdefault(given.flag, []).extend(given.values)
    for flag, secrets in values.items():
        state = "is visible to every user" if is_visible(secrets) else "was visible to every user until now"
        places = [flag.variable.name] if flag.variable is not None else []
        places += ["--api-key-file"] if has_key_file and flag.parameter == "api_key" else []
        yield f"{flag.name} on the command line {state}, and shells record it: prefer {' or '.join(places)}."


def empty_key_notices(given_flags: Iterable[GivenFlag]) -> Iterator[str]:
    """A line for an empty --api-key, as an unset variable of a script gives: requests then need no key.

    None if --api-key-file is empty too, as programs give it that want a server without keys.
    """
    empty = {given.flag.name for given in given_flags if not any(given.values)}
    if "--api-key" in empty and "--api-key-file" not in empty:
        yield "--api-key is empty: requests need no key, unless a file or the variable contains one."


def _split(words: Iterable[str]) -> Iterator[_Given]:
    """Finds flags as `Arguments.parse` does; a word that it would reject has no flag here."""
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word == "--":
            yield _Given(None, [word, *rest])
            return
        name, is_attached, _ = word.partition("=")
        flag = _find(name.partition(".")[0]) if is_flag_like(word) else None
        given = [word]
        if flag is not None and flag.shape is not Shape.SWITCH and not is_attached:
            given += _following_values(flag, rest)
        yield _Given(flag, given)


def _find(name: str) -> Flag | None:
    try:
        return find_flag(name).flag
    except InputError:  # for vLLM, an abbreviation may be clear that is ambiguous with the flags of this program
        whole = normalise(name)
        return next((f for f in SUPPORTED if f.is_secret and is_secret_flag(name) and f.name.startswith(whole)), None)


def _following_values(flag: Flag, rest: deque[str]) -> Iterator[str]:
    if rest and not (is_flag(rest[0]) or (flag.shape is Shape.OPTIONAL and is_flag_like(rest[0]))):
        yield rest.popleft()
        while flag.shape is Shape.LIST and rest and not is_flag_like(rest[0]):
            yield rest.popleft()
