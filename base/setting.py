"""Declares settings as dataclass fields. Their metadata has flag, help, environment variable and range.

`startup.arguments` derives the options of `serve` from this metadata. This module does not import click.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, field, fields, is_dataclass
from operator import ge, gt, le, lt
from typing import Any, Final, Literal, NamedTuple, TypedDict, TypeVar, Unpack, cast

from base.errors import ConfigError
from envs.variable import EnvVar

T = TypeVar("T")

Group = Literal[
    "Start",
    "Several models",
    "Model",
    "Memory and scheduling",
    "Requests and answers",
    "Images",
    "HTTP server",
    "Limits",
    "Logging",
]
"""The sections in the help of `serve`, in this order."""

Syntax = Literal[
    "count",
    "size",
    "compile cache",
    "duration",
    "restart policy",
    "token limit",
    "optional text",
    "JSON list",
    "comma list",
    "template",
    "log config",
    "tokenizer mode",
]
"""The form of a value, if the type of the field allows several forms. `count` and `size` accept units."""


Role = Literal["address", "keys", "tls", "port", "both", "router", "program", "run"]
"""Decides which process uses a setting if a router is in front of a model's server.

Without a role, only the model's server uses the setting. `address`, `keys`, `tls` and `port` are for the port
for clients, and `router` is for the router itself. A model's server gets no setting with these five roles.
`program` is for each server separately. `both` is for the port for clients and for all servers behind it.
`run` is for one run of a model, which reads or writes the place that the setting names.
"""


class Setting(TypedDict, total=False):
    """The metadata of a field. If it has `variable` but no `flag`, only the variable sets the field."""

    flag: str
    aliases: tuple[str, ...]
    help: str
    group: Group
    """The section of the flag in the help. The default is `help_group` of the dataclass."""
    role: Role
    """The default is the role of the dataclass, if it has one."""
    after: str
    """The flag that comes before this flag in the help. The default is the order of the fields."""
    filled_by: str
    """The flag of another field whose value this field also gets."""
    variable: EnvVar[Any]
    metavar: str
    choices: tuple[str, ...]
    """The allowed texts. If they are in capitals, values are accepted in any case."""
    syntax: Syntax
    minimum: float
    above: float
    maximum: float
    below: float
    expected: str
    """Replaces the description of the range in the message `--x must be <expected>, got 0`."""


_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {"minimum": ge, "above": gt, "maximum": le, "below": lt}


def setting(default: T, flag: str = "", help: str = "", /, **metadata: Unpack[Setting]) -> T:
    """A dataclass field with a default and metadata. If the default is a dict, each instance gets a copy."""
    if flag:
        metadata["flag"], metadata["help"] = flag, help
    if isinstance(default, dict):
        return cast("T", field(default_factory=default.copy, metadata=metadata))
    return field(default=default, metadata=metadata)


def from_variable(variable: EnvVar[T], flag: str = "", help: str = "", /, **metadata: Unpack[Setting]) -> T:
    """A field that an environment variable sets. The default of the variable is the default of the field."""
    metadata["variable"] = variable
    return setting(variable.default, flag, help, **metadata)


class ConfigField(NamedTuple):
    """A field of a configuration or of one of its sections."""

    path: str
    """The names of section and field, such as `server.port` for `port` in the section `server`."""
    field: Field[Any]
    group: Group
    role: Role | None


def walk_settings(config: Any, prefix: str = "") -> Iterator[ConfigField]:
    """Yields all fields of a dataclass, and of the dataclasses in it."""
    for each in fields(config):
        if is_section(each):
            yield from walk_settings(each.type, f"{prefix}{each.name}.")
        else:
            group = each.metadata.get("group", config.help_group)
            yield ConfigField(
                f"{prefix}{each.name}", each, group, each.metadata.get("role", getattr(config, "role", None))
            )


def is_section(field: Field[Any]) -> bool:
    """Whether the value of the field is a dataclass with settings."""
    return is_dataclass(field.type) and "flag" not in field.metadata


def check_ranges(config: Any) -> None:
    """Raises ConfigError if values are out of their declared ranges. It has all of them (`others`)."""
    faults: list[ConfigError] = []
    for declared in fields(config):
        value = getattr(config, declared.name)
        limits = [
            (compare, declared.metadata[key]) for key, compare in _COMPARISONS.items() if key in declared.metadata
        ]
        if value is not None and not all(compare(value, limit) for compare, limit in limits):
            faults.append(ConfigError(option_name(declared), value, _describe_range(declared.metadata)))
    if faults:
        faults[0].others = tuple(faults[1:])
        raise faults[0]


def option_name(declared: Field[Any]) -> str:
    """The flag that sets the field. If there is none, its environment variable."""
    return str(declared.metadata.get("flag") or declared.metadata["variable"].name)


def _describe_range(metadata: Mapping[str, Any]) -> str:
    if "expected" in metadata:
        return str(metadata["expected"])
    if "minimum" in metadata and "maximum" in metadata:
        return f"between {metadata['minimum']} and {metadata['maximum']}"
    texts = {"minimum": "{} or more", "above": "above {}", "maximum": "at most {}"}
    given = [text.format(metadata[key]) for key, text in texts.items() if key in metadata]
    return " and ".join(given)
