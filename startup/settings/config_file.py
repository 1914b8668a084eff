"""Reads the file of `--config`: YAML that names flags, with `${VAR}` in values as in Docker Compose.

`$VAR` is not replaced. A value may be a secret, so messages name variables and never their values.
"""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.json_depth import read_json
from base.wording import one_line
from envs import foreign
from envs.redaction import is_secret_flag

_REFERENCE: Final = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?)([-?])([^{}]*))?\}")

_HIDDEN: Final = str.maketrans("${}", "\ud800\ud801\ud802")
"""Characters that stand for `$`, `{` and `}` in inserted values, so that nothing is replaced twice.

Neither YAML nor environment variables can contain these characters.
"""
_SHOWN: Final = {hidden: chr(plain) for plain, hidden in _HIDDEN.items()}


class ConfigFile(NamedTuple):
    """The content of the file, read once, so that all its users see the same values of variables."""

    path: str
    content: Any = None
    """The parsed YAML, with variables replaced by their values."""
    is_changed: bool = False
    """Whether any reference was replaced."""
    problem: str | None = None
    missing: tuple[str, ...] = ()
    """A line for each reference that was not replaced: its variable is not set, and it has no default."""
    refused: tuple[str, ...] = ()
    """The lines of `missing` for references with `?` or in secrets. No engine may use these as plain text."""
    may_refer: bool = False
    """Whether the file has a problem, and may have references that were not replaced."""

    @classmethod
    def read(cls, path: str) -> "ConfigFile":
        """Reads the file. A fault of the file becomes `problem`, not an exception."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as err:
            return cls(path, problem=f"cannot be read: {err.strerror}", may_refer=True)
        except UnicodeDecodeError as err:
            return cls(path, problem="is not a text file in UTF-8", may_refer=b"${" in err.object)
        import yaml

        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as err:
            return cls(path, problem=f"is not YAML: {one_line(err)}")
        return cls.of(path, content)

    @classmethod
    def of(cls, path: str, content: Any) -> "ConfigFile":
        """Replaces references in all values: `${VAR}`, `${VAR:-default}`, `${VAR-default}`, `${VAR:?reason}`.

        `$${VAR}` stands for `${VAR}`. A result that is true, false, null or a number in JSON gets that type.
        """
        missing: list[tuple[str, bool]] = []
        try:
            replaced = _replace(content, "", missing)
            is_changed = replaced != content
        except RecursionError:
            return cls(path, content, problem="is nested too deeply", may_refer=True)
        problem = None if isinstance(content, dict | None) else "must be a mapping of flag names to values"
        refused = tuple(line for line, is_refused in missing if is_refused)
        return cls(path, replaced, is_changed, problem, tuple(line for line, _ in missing), refused)

    @property
    def settings(self) -> dict[str, Any]:
        """The values by name. Empty if the file is empty or cannot be used."""
        return {} if self.problem else {str(name): value for name, value in (self.content or {}).items()}

    def place(self, name: str) -> str:
        return f"{Path(self.path).name}: {name}"


def _replace(value: Any, key: str, missing: list[tuple[str, bool]]) -> Any:
    """The value with its references replaced. Adds lines to `missing`, each with whether it is refused."""
    if isinstance(value, dict):
        return {name: _replace(item, f"{key}.{name}", missing) for name, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, key, missing) for item in value]
    if not isinstance(value, str):
        return value

    def find(reference: re.Match[str]) -> str:
        is_escaped, name, colon, rule, word = reference.groups()
        if is_escaped:
            return reference[0][1:].translate(_HIDDEN)
        if foreign.text_of(name) if colon else foreign.is_set(name):
            return foreign.text_of(name).translate(_HIDDEN)
        if rule == "-":
            return str(word)
        line = f"{key[1:]}: {name} is not set" + (f" ({word})" if word else "")
        missing.append((line, rule == "?" or any(map(is_secret_flag, key.split(".")))))
        return reference[0].translate(_HIDDEN)

    text = value
    while (inner_replaced := _REFERENCE.sub(find, text)) != text:  # defaults may contain references
        text = inner_replaced
    text = text.translate(_SHOWN)
    return value if text == value else _with_type(text)


def _with_type(text: str) -> Any:
    """The JSON value of a text. A text that JSON would write differently, such as `1.10`, stays a text."""
    with suppress(ValueError, RecursionError):
        parsed = read_json(text)
        if not isinstance(parsed, str | list | dict) and json.dumps(parsed, allow_nan=False) == text:
            return parsed
    return text
