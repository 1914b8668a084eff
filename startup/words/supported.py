"""The flags of `serve` that have an effect, derived from the fields of `StartupConfig` and its sections."""

from collections.abc import Iterator
from dataclasses import MISSING, Field
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin

import click

from base.setting import ConfigField, Group, walk_settings
from envs.registry import ENGINES, env
from envs.variable import EnvVar
from startup.settings.config import StartupConfig
from startup.words.flag import Shape, SupportedFlag
from startup.words.param_types import BY_PYTHON_TYPE, BY_SYNTAX


def click_type(field: Field[Any]) -> click.ParamType | None:
    """The click type for a field. None for text, switches and lists of texts."""
    metadata = field.metadata
    if "syntax" in metadata:
        return BY_SYNTAX[metadata["syntax"]]
    if choices := metadata.get("choices"):
        return click.Choice(choices, case_sensitive=not choices[0].isupper())
    python_type = _python_type(field)
    if get_origin(python_type) is Literal:
        return click.Choice(get_args(python_type))
    if get_origin(python_type) is tuple:
        return BY_PYTHON_TYPE[get_args(python_type)[0]]
    return BY_PYTHON_TYPE[get_origin(python_type) or python_type]


def shape_of(field: Field[Any]) -> Shape:
    """The shape of a field's flag. bool is a switch. A tuple without `syntax` takes several words."""
    if field.metadata.get("syntax") == "optional text":
        return Shape.OPTIONAL
    python_type = _python_type(field)
    if python_type is bool:
        return Shape.SWITCH
    is_list = get_origin(python_type) is tuple and "syntax" not in field.metadata
    return Shape.LIST if is_list else Shape.VALUE


def metavar_of(field: Field[Any]) -> str | None:
    """The declared metavar, or else the unit. None leaves the choice to the click type."""
    metavar: str | None = field.metadata.get("metavar")
    if field.name.endswith("_s"):
        return metavar or "SECONDS"
    return metavar or ("SIZE" if field.metadata.get("syntax") == "size" else None)


def _python_type(field: Field[Any]) -> Any:
    """The field's type without `| None`."""
    if isinstance(field.type, UnionType):
        return next(part for part in get_args(field.type) if part is not type(None))
    return field.type


CONFIG_FIELDS: Final = tuple(walk_settings(StartupConfig))

VARIABLES: Final[dict[str, EnvVar[Any]]] = {
    path: field.metadata["variable"]
    for path, field, *_ in CONFIG_FIELDS
    if "variable" in field.metadata and "flag" not in field.metadata
}
"""Fields that only an environment variable sets."""

_FILLED_TOO: Final = {
    field.metadata["filled_by"]: (path,) for path, field, *_ in CONFIG_FIELDS if "filled_by" in field.metadata
}
"""A flag -> the path of the second field that gets the flag's value."""

ENGINE: Final = SupportedFlag(
    "--engine",
    type=click.Choice(ENGINES),
    variable=env.VCLI_ENGINE,
    default=env.VCLI_ENGINE.default,
    help="The engine: the installed vLLM (vllm), this package's own (embedded), or vLLM if it is installed, else "
    "embedded (auto).",
    role="program",
)
CONFIG: Final = SupportedFlag(
    "--config",
    metavar="FILE",
    help="YAML file of settings, named like the flags.",
)


def _derive_group(title: Group) -> Iterator[SupportedFlag]:
    declared = [each for each in CONFIG_FIELDS if each.group == title and "flag" in each.field.metadata]
    for each in declared:
        if "after" not in each.field.metadata:
            flag = _derive(each)
            yield flag
            yield from (_derive(other) for other in declared if other.field.metadata.get("after") == flag.name)


def _derive(declared: ConfigField) -> SupportedFlag:
    path, field, _, role = declared
    name = field.metadata["flag"]
    return SupportedFlag(
        name,
        field.metadata.get("aliases", ()),
        shape=shape_of(field),
        help=field.metadata["help"],
        fields=(path, *_FILLED_TOO.get(name, ())),
        default=None if field.default is MISSING else field.default,
        type=click_type(field),
        metavar=metavar_of(field),
        variable=field.metadata.get("variable"),
        role=role,
    )


GROUPS: Final[dict[str, tuple[SupportedFlag, ...]]] = {title: tuple(_derive_group(title)) for title in get_args(Group)}
GROUPS["Start"] = (ENGINE, CONFIG, *GROUPS["Start"])  # these two are read before there is a configuration

SUPPORTED: Final = tuple(flag for group in GROUPS.values() for flag in group)

LOG_FORMAT: Final = next(flag for flag in SUPPORTED if flag.name == "--log-format")
MODEL: Final = next(flag for flag in SUPPORTED if flag.name == "--model")
