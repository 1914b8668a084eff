"""The click type and the shape of a flag, from the type and metadata of its field."""

from dataclasses import Field
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin

import click

from server.lora_config import LoraModule
from server.pooler_config import PoolerConfig
from server.setting import Syntax
from vllm_cli.flags.byte_size import ByteSize
from vllm_cli.flags.flag import Shape
from vllm_cli.flags.log_config_file import LogConfigFile
from vllm_cli.flags.lora_module import LoraModuleType
from vllm_cli.flags.param_types import ChatTemplate, CommaList, HumanInt, JsonObject, JsonStrings, TokenLimit
from vllm_cli.flags.pooler_options import PoolerOptions

_BY_SYNTAX: Final[dict[Syntax, click.ParamType | None]] = {
    "count": HumanInt(),
    "size": ByteSize(),
    "token limit": TokenLimit(),
    "optional text": None,
    "JSON list": JsonStrings(),
    "comma list": CommaList(),
    "template": ChatTemplate(),
    "log config": LogConfigFile(),
}

_BY_PYTHON_TYPE: Final[dict[Any, click.ParamType | None]] = {
    bool: None,
    str: None,
    LoraModule: LoraModuleType(),
    int: click.INT,
    float: click.FLOAT,
    dict: JsonObject(),
    Path: click.Path(path_type=Path),
    PoolerConfig: PoolerOptions(),
}


def click_type(field: Field[Any]) -> click.ParamType | None:
    """None for text, switches and lists of texts."""
    metadata = field.metadata
    if "syntax" in metadata:
        return _BY_SYNTAX[metadata["syntax"]]
    if choices := metadata.get("choices"):
        return click.Choice(choices, case_sensitive=not choices[0].isupper())
    python_type = _python_type(field)
    if get_origin(python_type) is Literal:
        return click.Choice(get_args(python_type))
    if get_origin(python_type) is tuple:
        return _BY_PYTHON_TYPE[get_args(python_type)[0]]
    return _BY_PYTHON_TYPE[get_origin(python_type) or python_type]


def shape_of(field: Field[Any]) -> Shape:
    """Switches are bool; tuples without a syntax of their own take several words."""
    if field.metadata.get("syntax") == "optional text":
        return Shape.OPTIONAL
    python_type = _python_type(field)
    if python_type is bool:
        return Shape.SWITCH
    is_list = get_origin(python_type) is tuple and "syntax" not in field.metadata
    return Shape.LIST if is_list else Shape.VALUE


def metavar_of(field: Field[Any]) -> str | None:
    """The declared one, else the unit; None leaves it to the click type."""
    metavar: str | None = field.metadata.get("metavar")
    if field.name.endswith("_s"):
        return metavar or "SECONDS"
    return metavar or ("SIZE" if field.metadata.get("syntax") == "size" else None)


def _python_type(field: Field[Any]) -> Any:
    """Without `| None`."""
    if isinstance(field.type, UnionType):
        return next(part for part in get_args(field.type) if part is not type(None))
    return field.type
