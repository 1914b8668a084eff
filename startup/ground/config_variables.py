"""`${VAR}` in the values of a `--config` file, by rules of Docker Compose; `$VAR` stays as it is.

A value may be a secret: messages name variables, never their values.
"""

import json
import re
from contextlib import suppress
from typing import Any, Final, NamedTuple

from base.json_depth import read_json
from envs import foreign
from envs.redaction import is_secret_flag

_REFERENCE: Final = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?)([-?])([^{}]*))?\}")

_HIDDEN: Final = str.maketrans("${}", "\ud800\ud801\ud802")
"""Characters that neither YAML nor a variable can have: what is replaced has no references."""
_SHOWN: Final = {hidden: chr(plain) for plain, hidden in _HIDDEN.items()}


class Replaced(NamedTuple):
    """A file with the values of variables."""

    text: str
    """YAML; unchanged if no reference is replaced."""
    is_changed: bool = False
    missing: tuple[str, ...] = ()
    """A line for each reference that stays: its variable is not set, and there is no default."""
    refused: tuple[str, ...] = ()
    """The lines of references with `:?` and of those in secrets, which no engine may read as texts."""


def replace_variables(text: str) -> Replaced:
    """Replaces references in all values: `${VAR}`, `${VAR:-default}`, `${VAR-default}`, `${VAR:?reason}`.

    `$${VAR}` stands for `${VAR}`. What comes out as true, false, null or a number of JSON has that type.
    """
    if "${" not in text:
        return Replaced(text)
    import yaml

    missing: list[_Missing] = []
    is_changed = False
    with suppress(yaml.YAMLError, RecursionError, ValueError):  # whoever reads the file reports it
        settings = yaml.safe_load(text)
        replaced = _replace(settings, "", missing)
        if is_changed := replaced != settings:
            text = yaml.safe_dump(replaced, sort_keys=False)
    lines = tuple(each.line for each in missing)
    return Replaced(text, is_changed, lines, tuple(each.line for each in missing if each.is_refused))


class _Missing(NamedTuple):
    line: str
    is_refused: bool


def _replace(value: Any, key: str, missing: list[_Missing]) -> Any:
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
        missing.append(_Missing(line, rule == "?" or any(map(is_secret_flag, key.split(".")))))
        return reference[0].translate(_HIDDEN)

    text = value
    while (inner_replaced := _REFERENCE.sub(find, text)) != text:  # defaults have references, too
        text = inner_replaced
    text = text.translate(_SHOWN)
    return value if text == value else _with_type(text)


def _with_type(text: str) -> Any:
    """What JSON would write in another way, as the version 1.10, stays a text."""
    with suppress(ValueError, RecursionError):
        parsed = read_json(text)
        if not isinstance(parsed, str | list | dict) and json.dumps(parsed, allow_nan=False) == text:
            return parsed
    return text
