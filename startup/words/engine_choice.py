"""Chooses the engine. For vLLM, turns the launcher's flags into settings of the start."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from envs.registry import ENGINES, env
from envs.suggestion import did_you_mean
from startup.files.model.gguf import is_read_by_vllm
from startup.settings.config import VllmOptions
from startup.settings.flag import Flag
from startup.settings.serve_words import ServeWords
from startup.words.errors import InputError
from startup.words.param_types import click_type
from startup.words.supported import ENGINE, GROUPS, LOG_FORMAT

_FLAGS: Final = (*GROUPS["Start"], LOG_FORMAT)


def choose_engine(given: ServeWords, *, is_gguf: bool = False) -> str:
    """Returns `embedded` or `vllm`. Raises InputError if another engine is named, or if a value is missing.

    With `is_gguf`, llama-server can serve the model. `auto` then stands for vLLM only if vLLM can read it.
    """
    if given.incomplete is not None:
        raise InputError(f"Option {given.incomplete!r} requires an argument.")
    wanted = given.own.get(ENGINE.name) or env.VCLI_ENGINE.get()
    if wanted not in ENGINES:
        raise InputError(f"--engine {wanted!r} is not one of {', '.join(ENGINES)}{did_you_mean(wanted, ENGINES)}.")
    if is_gguf and wanted not in ("embedded", "vllm") and not is_read_by_vllm():
        return "embedded"
    return given.engine(wanted)


def vllm_options(given: ServeWords) -> VllmOptions:
    """Returns the settings of a start of vLLM. Raises InputError for an invalid value of a launcher flag."""
    values = {path: value for flag in _FLAGS for path in flag.fields for value in _values(flag, given.own)}
    return VllmOptions(words=tuple(given.engine_words), start_method=env.VLLM_WORKER_MULTIPROC_METHOD.get(), **values)


def _values(flag: Flag, own: Mapping[str, str]) -> Iterator[Any]:
    """Yields the converted value of a flag or else of its variable. Yields nothing if there is none."""
    value: Any = own.get(flag.name)
    if not value and flag.variable is not None and flag.is_set:
        value = flag.variable.get()
    if flag.nargs == 0:
        value = bool(value)
    if value is None:
        return
    try:
        yield value if (kind := click_type(flag)) is None else kind.convert(value, None, None)
    except click.BadParameter as err:
        raise InputError(f"{flag.name}: {err.message}") from err
