"""Types of flag values beyond those of click."""

import json
import re
from pathlib import Path
from typing import Any

import click

from envs.suggestion import did_you_mean

_MULTIPLIERS: dict[str, int] = {
    **{letter: 10 ** (3 * power) for power, letter in enumerate("kmgt", start=1)},
    **{letter: 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)},
}


class HumanInt(click.ParamType):
    """A whole number, or one with a suffix: `8k` is 8000, `8K` is 8192, `25.6k` is 25600."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Fractions need a decimal suffix, as in vLLM."""
        match = re.fullmatch(r"(-?\d+)|(\d+(?:\.\d+)?)([kmgtKMGT])", str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a whole number such as 4096, 4k or 4K.", param, ctx)
        plain, number, suffix = match.groups()
        if plain:
            return int(plain)
        if suffix.isupper() and "." in number:
            decimal = f"{number}{suffix.lower()}"
            self.fail(f"{value!r} has a fraction and a binary suffix{did_you_mean(value, [decimal])}.", param, ctx)
        return round(float(number) * _MULTIPLIERS[suffix])


class TokenLimit(click.ParamType):
    """A HumanInt, or `auto` or -1 for the model's own limit."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """None is the model's own limit."""
        if str(value).strip().lower() in ("auto", "-1"):
            return None
        return HumanInt().convert(value, param, ctx)


class JsonObject(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """The error names the position of a JSON fault."""
        parsed = _load_json(self, value, param, ctx)
        if not isinstance(parsed, dict):
            self.fail(f"{value!r} is not a JSON object.", param, ctx)
        return parsed


class JsonStrings(click.ParamType):
    """A JSON list of strings."""

    name = "json list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The error names the position of a JSON fault."""
        parsed = _load_json(self, value, param, ctx)
        if not isinstance(parsed, list | tuple) or not all(isinstance(item, str) for item in parsed):
            self.fail(f"""{value!r} is not a JSON list of strings such as '["*"]'.""", param, ctx)
        return tuple(parsed)


class CommaList(click.ParamType):
    """Words separated by commas."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Ignores blanks around a word, and empty words."""
        if isinstance(value, tuple):
            return value
        return tuple(word.strip() for word in str(value).split(",") if word.strip())


class ChatTemplate(click.ParamType):
    """A template's text, from a file or inline."""

    name = "file|template"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """A value that is not a file must contain braces or several lines to be a template, as in vLLM."""
        try:
            return Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError) as err:
            if any(character in value for character in "{}\n"):
                return str(value)
            reason = getattr(err, "strerror", None) or err
            self.fail(f"{value!r} is neither a template nor a readable file ({reason}).", param, ctx)


def _load_json(type_: click.ParamType, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as err:
        type_.fail(f"{value!r} is not JSON: {err}.", param, ctx)
