"""All flags of `serve` in one table: where a word of the command line is looked up."""

from typing import Final, NamedTuple

from envs.suggestion import closest
from vllm_cli.errors import InputError
from vllm_cli.flags.flag import Flag, Shape
from vllm_cli.flags.hinted import HINTED
from vllm_cli.flags.honoured import HONOURED
from vllm_cli.flags.refused import REFUSED


class Spelling(NamedTuple):
    """What a word of the command line stands for."""

    flag: Flag
    is_negated: bool = False


def spellings(flag: Flag) -> dict[str, Spelling]:
    """Every way to write a flag."""
    plain = {name: Spelling(flag) for name in flag.names}
    if flag.shape is not Shape.SWITCH:
        return plain
    negated = {f"--no-{name.removeprefix('--')}" for name in flag.names if name.startswith("--")}
    return plain | {name: Spelling(flag, is_negated=True) for name in negated}


HINT_REASONS: Final = {flag: reason for reason, flags in HINTED.items() for flag in flags}
"""Why a hinted flag changes nothing."""

REFUSED_REQUESTS: Final = {flag: request for request, flags in REFUSED.items() for flag in flags}
"""What a refused flag asks for."""

FLAGS: Final[tuple[Flag, ...]] = (*HONOURED, *HINT_REASONS, *REFUSED_REQUESTS)

_BY_NAME: Final = {name: spelling for flag in FLAGS for name, spelling in spellings(flag).items()}


def normalise(name: str) -> str:
    """`--max_model_len` is `--max-model-len`."""
    return name.replace("_", "-") if name.startswith("--") else name


def is_flag(word: str) -> bool:
    """Whether a word is a flag of `serve`, its value perhaps attached."""
    return normalise(word.partition("=")[0].partition(".")[0]) in _BY_NAME


def find_flag(name: str) -> Spelling:
    """The flag of that name; an unknown one is a usage error with a guess."""
    spelling = _BY_NAME.get(normalise(name))
    if spelling is None:
        raise InputError(f"No such option: {name}{_guess(name)}")
    return spelling


def _guess(name: str) -> str:
    """Without the dashes, which make any two flags look alike."""
    match = closest(normalise(name).lstrip("-"), (known.lstrip("-") for known in _BY_NAME))
    return f" (did you mean --{match}?)" if match else ""
