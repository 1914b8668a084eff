"""Which engine a command line is for, and, where that is vLLM, which of its words are ours."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import click

from envs.registry import ENGINES, env
from envs.suggestion import did_you_mean
from startup.prefetch.options import PrefetchOptions
from startup.vllm.options import VllmOptions
from vllm_cli.errors import InputError
from vllm_cli.flags.flag import HonouredFlag, Shape
from vllm_cli.flags.honoured import ENGINE, LOG_FORMAT, RENDERER_INLINE, START

OWN_WITH_VLLM: Final = (ENGINE, LOG_FORMAT, *START)
"""Flags that the launcher takes out; every other word is vLLM's."""

_BY_NAME: Final = {flag.name: flag for flag in OWN_WITH_VLLM}


class SplitWords(NamedTuple):
    """A command line, sorted by whom its words are for."""

    own: Mapping[str, str]
    """Our flags with their last value; `true` for a switch."""
    others: tuple[str, ...]
    """In order, as they were written."""


def choose_engine(words: Sequence[str]) -> str:
    """`embedded` or `vllm`; raises InputError for anything else that is asked for."""
    split = split_words(words)
    wanted = split.own.get(ENGINE.name) or env.VCLI_ENGINE.get()
    if wanted not in ENGINES:
        raise InputError(f"--engine {wanted!r} is not one of {', '.join(ENGINES)}{did_you_mean(wanted, ENGINES)}.")
    if wanted != "auto":
        return wanted
    return "vllm" if RENDERER_INLINE.name not in split.others and _is_vllm_installed() else "embedded"


def split_words(words: Sequence[str]) -> SplitWords:
    """Takes our flags out; behind a first `--`, which goes too, everything is vLLM's."""
    own: dict[str, str] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            others += rest
            break
        name, is_attached, value = word.partition("=")
        flag = _BY_NAME.get(name.replace("_", "-"))
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
    """Settings for `startup.vllm.launch`; raises click's errors where a value of ours makes no sense."""
    split = split_words(words)
    given = {flag.name: _converted(flag, split.own[flag.name], ctx) for flag in START if flag.name in split.own}
    prefetch = {
        field: given[flag.name]
        for flag in START
        for path in flag.fields
        if flag.name in given and (field := path.removeprefix("prefetch.")) != path
    }
    return VllmOptions(
        words=split.others,
        start_method=env.VLLM_WORKER_MULTIPROC_METHOD.get() if env.VLLM_WORKER_MULTIPROC_METHOD.raw else None,
        prefetch=PrefetchOptions(**prefetch),
        startup_timeout_s=given.get("--startup-timeout"),
        startup_report=given.get("--startup-report"),
        startup_trace=given.get("--startup-trace"),
        log_format=_converted(LOG_FORMAT, split.own.get(LOG_FORMAT.name) or env.VCLI_LOG_FORMAT.get(), ctx),
        is_preflight_only=bool(given.get("--preflight-only")),
        is_json=bool(given.get("--json")),
    )


def _converted(flag: HonouredFlag, value: str, ctx: click.Context) -> Any:
    if flag.shape is Shape.SWITCH:
        return value == "true"
    if flag.type is None:
        return value
    try:
        return flag.type.convert(value, None, ctx)
    except click.BadParameter as err:
        raise InputError(f"{flag.name}: {err.message}") from err


def _is_vllm_installed() -> bool:
    """Without importing it, and without reading what is installed: the embedded engine's start waits for this."""
    return find_spec("vllm") is not None
