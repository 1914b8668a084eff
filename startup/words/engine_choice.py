"""Chooses the engine. For vLLM, turns the launcher's flags into settings of the start."""

from collections.abc import Sequence
from typing import Any, Final

import click

from envs.registry import ENGINES, env
from envs.suggestion import did_you_mean
from startup.files.model.gguf import is_read_by_vllm
from startup.settings.config import VllmOptions
from startup.settings.serve_words import LAUNCHER_FLAGS, ServeWords
from startup.words.errors import InputError
from startup.words.flag import SupportedFlag
from startup.words.supported import ENGINE, GROUPS, SUPPORTED

_FLAGS: Final = tuple(
    flag for flag in SUPPORTED if flag.name in LAUNCHER_FLAGS and flag not in GROUPS["Several models"]
)


def choose_engine(words: Sequence[str], *, is_gguf: bool = False) -> str:
    """Returns `embedded` or `vllm`. Raises InputError if another engine is named.

    With `is_gguf`, llama-server can serve the model. `auto` then stands for vLLM only if vLLM can read it.
    """
    given = _split(words)
    wanted = given.own.get(ENGINE.name) or env.VCLI_ENGINE.get()
    if wanted not in ENGINES:
        raise InputError(f"--engine {wanted!r} is not one of {', '.join(ENGINES)}{did_you_mean(wanted, ENGINES)}.")
    if is_gguf and wanted not in ("embedded", "vllm") and not is_read_by_vllm():
        return "embedded"
    return given.engine(wanted)


def vllm_options(ctx: click.Context, words: Sequence[str]) -> VllmOptions:
    """Returns the settings of a start of vLLM. Raises InputError for an invalid value of a launcher flag."""
    split = _split(words)
    by_variable = {f.name: f.variable.get() for f in _FLAGS if f.variable is not None and f.variable.raw is not None}
    given = {**split.own, **{name: split.own.get(name) or value for name, value in by_variable.items()}}
    flags = [flag for flag in _FLAGS if flag.name in given]
    values = {path: _convert(flag, given[flag.name], ctx) for flag in flags for path in flag.fields}
    return VllmOptions(
        words=tuple(split.engine_words),
        start_method=env.VLLM_WORKER_MULTIPROC_METHOD.get(),
        is_preflight_only="--preflight-only" in given,
        is_json="--json" in given,
        **values,
    )


def _split(words: Sequence[str]) -> ServeWords:
    given = ServeWords(words)
    if given.incomplete is not None:
        raise InputError(f"Option {given.incomplete!r} requires an argument.")
    return given


def _convert(flag: SupportedFlag, value: Any, ctx: click.Context) -> Any:
    if flag.type is None:
        return value
    try:
        return flag.type.convert(value, None, ctx)
    except click.BadParameter as err:
        raise InputError(f"{flag.name}: {err.message}") from err
