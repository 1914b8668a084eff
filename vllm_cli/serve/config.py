"""Builds the typed configuration of a start from what flags, file and variables gave."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from startup.config import StartupConfig
from startup.model.location import DEFAULT_MODEL_ID
from vllm_cli.flags.flag import Shape, SupportedFlag
from vllm_cli.flags.supported import SUPPORTED, VARIABLES, is_section


def build_startup_config(settings: Mapping[str, Any]) -> StartupConfig:
    """Settings are named like flags, `max_model_len`; a setting that is not given keeps its default."""
    values = {path: variable.get() for path, variable in VARIABLES.items()}
    values |= {path: _given_value(flag, settings) for flag in SUPPORTED for path in flag.fields}
    if values["server.served_model_names"] is None:
        values["server.served_model_names"] = (values["model.model"] or DEFAULT_MODEL_ID,)
    config: StartupConfig = _build(StartupConfig, values)
    return config


def _given_value(flag: SupportedFlag, settings: Mapping[str, Any]) -> Any:
    value = settings.get(flag.parameter)
    if flag.shape is Shape.LIST:
        value = tuple(filter(None, value or ()))
        return value or None
    return None if value == "" else value


def _build(config: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    arguments = {}
    for field in fields(config):
        path = f"{prefix}{field.name}"
        if is_section(field):
            arguments[field.name] = _build(field.type, values, f"{path}.")
        elif values.get(path) is not None:
            arguments[field.name] = values[path]
    return config(**arguments)
