"""All flags of `serve` by name, also those without effect in the embedded engine, and those it refuses."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple

from envs.redaction import is_secret_flag
from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.arguments.errors import InputError
from startup.arguments.supported import SUPPORTED
from startup.arguments.unsupported import IGNORED, REJECTED
from startup.settings.flag import Flag
from startup.settings.serve_arguments import ParsedOption, cut, normalise, with_values


class Spelling(NamedTuple):
    """A flag that an argument of the command line stands for, and whether the argument negates it."""

    flag: Flag
    is_negated: bool


IGNORE_REASONS: Final = {flag: reason for reason, flags in IGNORED.items() for flag in flags}
"""An ignored flag -> the reason why it changes nothing."""

REJECTED_FEATURES: Final = {flag: feature for feature, flags in REJECTED.items() for flag in flags}
"""A rejected flag -> the feature that it requests."""

FLAGS: Final[tuple[Flag, ...]] = (*SUPPORTED, *IGNORE_REASONS, *REJECTED_FEATURES)

_MAX_SHOWN: Final = 5

_BY_NAME: Final = {option: Spelling(flag, option in flag.opposites) for flag in FLAGS for option in flag.options}


def find_flag(name: str) -> Spelling:
    """The flag with this name or unique abbreviation. Raises a usage error with a suggestion."""
    return _BY_NAME.get(normalise(name)) or _complete(name)


def find_known_flag(name: str) -> Flag | None:
    """The flag with this name or unique abbreviation. None if there is no such flag."""
    try:
        return find_flag(name).flag
    except InputError:  # the abbreviation may be ambiguous only here, not among vLLM's flags
        return next((f for f in SUPPORTED if f.is_secret and is_secret_flag(name) and f.name.startswith(name)), None)


def option_of(part: ParsedOption) -> ParsedOption:
    """The option that an argument stands for. It has a fault and no flag if this program rejects it."""
    try:
        return ParsedOption.of(*_flag_and_values(part))
    except InputError as err:
        option = ParsedOption((), part.typed)
        option.fault = err.message
        return option


def _flag_and_values(part: ParsedOption) -> tuple[Flag, Sequence[str]]:
    flag, is_negated = find_flag(part.typed)
    if flag.nargs == 0:
        if part.keys or "=" in part.arguments[0]:
            raise InputError(f"{part.typed} takes no value: write {part.typed} or {flag.opposites[0]}.")
        return flag, ["false" if is_negated else "true"]
    if not part.values and (part.keys or flag.nargs != "?"):
        raise InputError(f"Option {(part.spelling if part.keys else flag.name)!r} requires an argument.")
    return flag, part.values or [""]


def split_flags(arguments: Iterable[str]) -> Iterator[ParsedOption]:
    """Splits a command line by all flags of this program, and names them (`ParsedOption.flag`)."""
    return with_flags(cut(arguments))


def with_flags(pieces: Sequence[ParsedOption]) -> Iterator[ParsedOption]:
    """Yields the flags of a command line with their values, and names them (`ParsedOption.flag`)."""
    find = cache(find_known_flag)

    def num_values(name: str) -> int | str | None:
        flag = find(name)
        return flag.nargs if flag else None

    for option in with_values(pieces, num_values):
        option.flag = flag = find(option.typed) if option.typed else None
        option.name = flag.name if flag else option.typed
        yield option


def _complete(name: str) -> Spelling:
    """Completes a name as argparse does."""
    whole = normalise(name)
    may_complete = name.startswith("--") and whole not in REPLACEMENTS
    names = [known for known in _BY_NAME if known.startswith(whole)] if may_complete else []
    if not names:
        raise InputError(f"No such option: {name}{did_you_mean(whole, _BY_NAME)}")
    meanings = [_BY_NAME[known] for known in names]
    if any(meaning != meanings[0] for meaning in meanings):
        shown = ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")
        raise InputError(f"Option {name} is ambiguous: {shown}")
    return meanings[0]
