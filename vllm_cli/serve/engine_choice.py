"""Chooses the engine for a command line; for vLLM, separates the launcher's flags from vLLM's words."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import click

from envs.registry import ENGINES, env
from envs.suggestion import did_you_mean
from startup.prefetch.options import PrefetchOptions
from startup.standby.kinds import is_vllm_installed
from startup.vllm.options import VllmOptions
from vllm_cli.errors import InputError
from vllm_cli.flags.flag import Shape, SupportedFlag
from vllm_cli.flags.supported import CONFIG, ENGINE, GROUPS, LOG_FORMAT

LAUNCHER_FLAGS: Final = {flag.name: flag for flag in (*GROUPS["Start"], LOG_FORMAT) if flag is not CONFIG}
"""Flags that the launcher takes out of vLLM's command line; every other word is vLLM's."""


class SplitWords(NamedTuple):
    """A command line, split between the launcher and vLLM."""

    own: Mapping[str, str]
    """The launcher's flags with their last value; `true` for a switch."""
    others: tuple[str, ...]
    """vLLM's words, unchanged and in order."""


def choose_engine(words: Sequence[str]) -> str:
    """`embedded` or `vllm`; raises InputError if another engine is named."""
    split = split_words(words)
    wanted = split.own.get(ENGINE.name) or env.VCLI_ENGINE.get()
    if wanted not in ENGINES:
        raise InputError(f"--engine {wanted!r} is not one of {', '.join(ENGINES)}{did_you_mean(wanted, ENGINES)}.")
    if wanted != "auto":
        return wanted
    return "vllm" if "--renderer-inline" not in split.others and is_vllm_installed() else "embedded"


def keyless_flags(words: Sequence[str]) -> tuple[str, ...]:
    """Flags before the user's words for a server without API keys, instead of those of a --config file."""
    return ("--api-key=",) if choose_engine(words) == "vllm" else ("--api-key=", "--api-key-file=")


def split_words(words: Sequence[str]) -> SplitWords:
    """Takes the launcher's flags out. The first `--` is dropped; every word after it is vLLM's."""
    own: dict[str, str] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            others += rest
            break
        name, is_attached, value = word.partition("=")
        flag = LAUNCHER_FLAGS.get(name.replace("_", "-"))
        if flag is None:
            others.append(word)
        elif flag.shape is Shape.SWITCH:
            own[flag.name] = "true"
        elif is_attached:
            own[flag.name] = value
        elif rest:
            own[flag.name] = rest.pop(0)
        else:
            raise InputError(f"Option {flag.name!r} requires an argument.")
    return SplitWords(own, tuple(others))


def vllm_options(ctx: click.Context, words: Sequence[str]) -> VllmOptions:
    """Settings for `startup.vllm.launch.start`; raises InputError for an invalid value of a launcher flag."""
    split = split_words(words)
    given = {**split.own, LOG_FORMAT.name: split.own.get(LOG_FORMAT.name) or env.VCLI_LOG_FORMAT.get()}
    flags = [flag for flag in LAUNCHER_FLAGS.values() if flag.name in given]
    values = {path: _convert(flag, given[flag.name], ctx) for flag in flags for path in flag.fields}
    prefetch = {path.removeprefix("prefetch."): values.pop(path) for path in tuple(values) if "prefetch." in path}
    return VllmOptions(
        words=split.others,
        start_method=env.VLLM_WORKER_MULTIPROC_METHOD.get() if env.VLLM_WORKER_MULTIPROC_METHOD.raw else None,
        prefetch=PrefetchOptions(**prefetch),
        is_preflight_only="--preflight-only" in given,
        is_json="--json" in given,
        **values,
    )


def _convert(flag: SupportedFlag, value: str, ctx: click.Context) -> Any:
    if flag.type is None:
        return value
    try:
        return flag.type.convert(value, None, ctx)
    except click.BadParameter as err:
        raise InputError(f"{flag.name}: {err.message}") from err
