"""The flags of `serve` that have an effect, derived from the fields of `StartupConfig` and its sections."""

from collections.abc import Iterator
from dataclasses import MISSING, Field
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin

from base.setting import ConfigField, Group, walk_settings
from envs.registry import ENGINES, env
from envs.variable import EnvVar
from server.terms.config import PoolerConfig
from startup.settings.config import StartupConfig
from startup.settings.flag import Flag, ValueKind, opposites_of

_KINDS: Final[dict[Any, ValueKind]] = {
    bool: "text",
    str: "text",
    int: "int",
    float: "float",
    dict: "object",
    Path: "path",
    PoolerConfig: "pooler",
}
"""A field's type -> how the value of its flag is read."""


def _choices_of(field: Field[Any]) -> tuple[str, ...] | None:
    python_type = _python_type(field)
    choices: tuple[str, ...] | None = field.metadata.get("choices")
    return choices or (get_args(python_type) if get_origin(python_type) is Literal else None)


def _kind_of(field: Field[Any]) -> ValueKind:
    python_type = _python_type(field)
    base = get_args(python_type)[0] if get_origin(python_type) is tuple else get_origin(python_type) or python_type
    kind: ValueKind = field.metadata.get("syntax") or ("text" if _choices_of(field) else _KINDS[base])
    return kind


def _nargs_of(field: Field[Any]) -> int | str:
    """The number of values. bool is a switch. A tuple without `syntax` takes several arguments."""
    if field.metadata.get("syntax") == "optional text":
        return "?"
    python_type = _python_type(field)
    if python_type is bool:
        return 0
    return "+" if get_origin(python_type) is tuple and "syntax" not in field.metadata else 1


def _metavar_of(field: Field[Any]) -> str | None:
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

ENGINE: Final = Flag(
    ("--engine",),
    choices=ENGINES,
    variable=env.VCLI_ENGINE,
    default=env.VCLI_ENGINE.default,
    help="The engine: the installed vLLM (vllm), this package's own (embedded), or vLLM if it is installed, else "
    "embedded (auto).",
    role="program",
)
CONFIG: Final = Flag(
    ("--config",),
    metavar="FILE",
    help="YAML file of settings, named like the flags.",
)


def _derive_group(title: Group) -> Iterator[Flag]:
    declared = [each for each in CONFIG_FIELDS if each.group == title and "flag" in each.field.metadata]
    for each in declared:
        if "after" not in each.field.metadata:
            flag = _derive(each)
            yield flag
            yield from (_derive(other) for other in declared if other.field.metadata.get("after") == flag.name)


def _derive(declared: ConfigField) -> Flag:
    path, field, _, role = declared
    name, nargs = field.metadata["flag"], _nargs_of(field)
    names = (name, *field.metadata.get("aliases", ()))
    return Flag(
        names,
        _kind_of(field),
        nargs,
        opposites=() if nargs else opposites_of(*names),
        choices=_choices_of(field),
        help=field.metadata["help"],
        fields=(path, *_FILLED_TOO.get(name, ())),
        default=None if field.default is MISSING else field.default,
        metavar=_metavar_of(field),
        variable=field.metadata.get("variable"),
        role=role,
    )


GROUPS: Final[dict[str, tuple[Flag, ...]]] = {title: tuple(_derive_group(title)) for title in get_args(Group)}
GROUPS["Start"] = (ENGINE, CONFIG, *GROUPS["Start"])  # these two are read before there is a configuration

SUPPORTED: Final = tuple(flag for group in GROUPS.values() for flag in group)

LOG_FORMAT: Final = next(flag for flag in SUPPORTED if flag.name == "--log-format")
WEB_PAGE: Final = next(flag for flag in SUPPORTED if flag.name == "--web-page")
MODEL: Final = next(flag for flag in SUPPORTED if flag.name == "--model")
