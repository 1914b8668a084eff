"""Describes a flag of `serve`, of the launcher, the embedded engine or the installed vLLM, and its keys.

The launcher's flags come from the settings (`startup.arguments.supported`), vLLM's from the record of an
earlier start (`startup.vllm_arguments.vllm_record`). This module does not import click.
"""

import re
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from base.setting import Role, Syntax
from envs.redaction import is_secret_name
from envs.variable import EnvVar

ValueKind: TypeAlias = Literal[
    Syntax,
    "text",
    "int",
    "float",
    "json",
    "json or text",
    "object",
    "pooler",
    "path",
    "folded",
    "lower",
    "unknown",
]
"""How a value is read. `count` is an integer, possibly with a suffix, as in 8k. `object` is JSON with known
fields. A choice of kind `folded` may have upper case and dashes, one of kind `lower` upper case. A value
of kind `unknown` is not checked."""
JsonKind: TypeAlias = Literal[
    "any", "str", "bool", "int", "float", "choice", "lower", "folded", "union", "list", "dict", "object"
]
Limits: TypeAlias = tuple[tuple[str, float], ...]
"""The range of a number: names of comparisons in `operator`, each with its bound."""


class Shape(NamedTuple):
    """The JSON values that a field, an item, or a whole flag may have."""

    kind: JsonKind = "any"
    """A choice of kind `lower` may have upper case, one of kind `folded` also dashes."""
    is_optional: bool = False
    """Whether the value may be null."""
    choices: tuple[Any, ...] = ()
    limits: Limits = ()
    parts: tuple["Shape", ...] = ()
    """The shape of a list's items or of an object's values, or the shapes of a union."""
    fields: dict[str, "Shape"] = {}


class Flag(NamedTuple):
    """A flag. Names and number of values suffice to find where the next flag begins."""

    names: tuple[str, ...]
    """All names. In vLLM's order, a short name may come before or after the long name."""
    kind: ValueKind = "text"
    nargs: int | str = 1
    """The number of values: 0 for a switch, else 1, `+`, `*` or `?`, as for argparse."""
    opposites: tuple[str, ...] = ()
    """The options that turn a switch off, such as `--no-x`."""
    is_optional: bool = False
    """Whether an empty value or `None` means that no value is set."""
    choices: tuple[Any, ...] | None = None
    limits: Limits = ()
    shape: Shape | None = None
    """The values that an object may have."""
    default: Any = None
    """The default of the first field. Of a flag of vLLM, the default if it is a float."""
    help: str = ""
    """The meaning of a flag that has an effect in the embedded engine or the launcher."""
    fields: tuple[str, ...] = ()
    """The fields of `StartupConfig` that get the value, such as `server.port`."""
    metavar: str | None = None
    neutral: tuple[str, ...] = ()
    """Values that change nothing in the embedded engine, such as vLLM's default."""
    role: Role | None = None
    """The processes that read the setting if the server has a router (`base.setting.Role`)."""
    variable: EnvVar[Any] | None = None
    """The variable that is read if the flag is not given."""
    changes: tuple[str, ...] = ()
    """What vLLM's flag changes in a start (`startup.vllm_arguments.flags.Change`)."""
    shortest: str = ""
    """The shortest abbreviation in vLLM 0.29–0.33. The name if there is none."""

    @property
    def name(self) -> str:
        """The flag's first long name, or the variable's name."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])

    @property
    def options(self) -> tuple[str, ...]:
        """All full spellings of the flag."""
        return (*self.names, *self.opposites)

    @property
    def parameter(self) -> str:
        """The name as a Python identifier, which is the attribute of this flag in argparse's result."""
        return self.name.lstrip("-").replace("-", "_")

    @property
    def is_secret(self) -> bool:
        """Whether output must mask the flag's value."""
        return self.nargs != 0 and is_secret_name(self.name)

    @property
    def is_set(self) -> bool:
        """Whether the variable is set."""
        return self.variable is not None and self.variable.raw is not None


def opposites_of(*names: str) -> tuple[str, ...]:
    """The options that turn a switch with these names off.

    Opposites of `--enable-x` are `--no-enable-x` and, since vLLM 0.33, `--disable-x`. `--enable-x` is also an
    opposite of `--disable-x`.
    """
    long_names = [name for name in names if name.startswith("--")]
    opposites = [f"--no-{name.removeprefix('--')}" for name in long_names]
    for begin, opposite in (("--enable-", "--disable-"), ("--disable-", "--enable-")):
        opposites += [opposite + name.removeprefix(begin) for name in long_names if name.startswith(begin)]
    return tuple(opposites)


_FACTORS: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")


def parse_size(text: str) -> int:
    """Parses a whole number with an optional suffix: `8k` is 8000, `8K` is 8192, `25.6k` is 25600.

    Raises:
        ValueError: the text is not a number, or has both a fraction and a binary suffix.
    """
    text = text.strip()
    if (match := _SIZE.fullmatch(text)) is None:
        return int(text)
    number, suffix = match.groups()
    return int(float(number) * _FACTORS[suffix]) if suffix.islower() else int(number) * _FACTORS[suffix]
