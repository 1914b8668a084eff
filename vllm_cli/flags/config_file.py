"""Reads `--config file.yaml`: settings named like the flags of `serve`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_cli.errors import InputError
from vllm_cli.flags.arguments import Arguments
from vllm_cli.flags.flag import Shape
from vllm_cli.flags.supported import CONFIG
from vllm_cli.flags.table import find_flag


def read_config_file(path: Path) -> Arguments:
    """The file's settings as if they were flags; raises InputError if the file is not valid."""
    try:
        return Arguments.parse(word for key, value in _load(path).items() for word in _words(key, value))
    except InputError as err:
        raise InputError(f"{CONFIG.name} {path}: {err.message}") from err


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise InputError(f"cannot be read: {err.strerror}.") from err
    except UnicodeDecodeError as err:
        raise InputError("is not a text file.") from err
    settings = _parse(text)
    if not isinstance(settings, dict):
        raise InputError("must be a mapping of flag names to values.")
    return {str(key): value for key, value in settings.items()}


def _parse(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as err:
        raise InputError(f"is not YAML: {' '.join(str(err).split())}.") from err


def _words(key: str, value: Any) -> Iterator[str]:
    name = f"--{key}"
    flag = find_flag(name.partition(".")[0]).flag
    if flag is CONFIG:
        raise InputError("a config file cannot name another one.")
    if value is None:
        return
    if isinstance(value, bool):
        yield from _switch_words(name, value, is_switch=flag.shape is Shape.SWITCH)
    elif isinstance(value, list) and flag.shape is Shape.LIST:
        yield from (f"{name}={item}" for item in value)
    elif isinstance(value, dict | list):
        yield f"{name}={json.dumps(value)}"
    else:
        yield f"{name}={value}"


def _switch_words(name: str, value: bool, *, is_switch: bool) -> Iterator[str]:
    if not is_switch:
        yield f"{name}={json.dumps(value)}"
    elif value:
        yield name
    elif name.startswith("--no-"):
        yield f"--{name.removeprefix('--no-')}"
    else:
        yield f"--no-{name.removeprefix('--')}"
