"""Types of flag values that click does not have."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import click

from base.errors import ConfigError
from base.json_depth import read_json
from envs.home import expand_home
from envs.suggestion import did_you_mean, former_form
from envs.variable import EXPECTED_DURATION, parse_duration
from server.terms.config import PoolerConfig
from startup.settings.config import CompileCacheOption
from startup.storage.keyed_values import parse_size

_UNITS: Final = ("", "k", "m", "g", "t")


class HumanInt(click.ParamType):
    """A whole number, possibly with a suffix, as `parse_size` reads it."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(str(value))
        except ValueError:
            self.fail(f"{value!r} {_why_no_integer(str(value))}.", param, ctx)


def _why_no_integer(text: str) -> str:
    with suppress(ValueError):
        parse_size(text.lower())
        return f"has a fraction and a binary suffix{did_you_mean(text, [text.lower()])}"
    return "is not a whole number such as 4096, 4k or 4K"


class TokenLimit(click.ParamType):
    """A whole number as in HumanInt. `auto` and -1 stand for the model's own limit."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Returns None for the model's own limit."""
        if str(value).strip().lower() in ("auto", "-1"):
            return None
        return HumanInt().convert(value, param, ctx)


class JsonObject(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Parses the text. An error contains the position of a fault in the JSON."""
        parsed = _load_json(self, value, param, ctx)
        if not isinstance(parsed, dict):
            self.fail(f"{value!r} is not a JSON object.", param, ctx)
        return parsed


class JsonStrings(click.ParamType):
    """A JSON list of strings."""

    name = "json list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        parsed = _load_json(self, value, param, ctx)
        if not isinstance(parsed, list | tuple) or not all(isinstance(item, str) for item in parsed):
            self.fail(f"""{value!r} is not a JSON list of strings such as '["*"]'.""", param, ctx)
        return tuple(parsed)


class CommaList(click.ParamType):
    """Words separated by commas."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Splits the text. Ignores blanks around words, and empty words."""
        if isinstance(value, tuple):
            return value
        return tuple(word.strip() for word in str(value).split(",") if word.strip())


class ChatTemplate(click.ParamType):
    """The text of a chat template, from a file or from the flag itself."""

    name = "file|template"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Reads the file. A value that is not a file must contain braces or several lines, as in vLLM."""
        try:
            return Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError) as err:
            if any(character in value for character in "{}\n"):
                return str(value)
            reason = getattr(err, "strerror", None) or err
            self.fail(f"{value!r} is neither a template nor a readable file ({reason}).", param, ctx)


class TokenizerModes(click.Choice):
    """The tokenizer modes that the embedded engine has."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Rejects vLLM's other modes, such as the modes of Grok-2 and DeepSeek-V3.2."""
        if value not in self.choices:
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}. Others need --engine vllm.", param, ctx)
        return value


def _load_json(type_: click.ParamType, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as err:
        hint = former_form(param.opts[0]) if param is not None else ""
        type_.fail(f"{value!r} is not JSON{hint or f': {err}'}.", param, ctx)


_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)")


class ByteSize(click.ParamType):
    """`16MiB` and `16M` are 16 times 2**20 bytes, `16MB` is 16 million, `16777216` is bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parses the text in upper or lower case."""
        match = _SIZE.fullmatch(str(value).strip().lower())
        if not match or (match[3] and not match[2]):
            self.fail(f"{value!r} is not a size such as 16MiB, 16M or 16777216.", param, ctx)
        number, unit, binary, byte = match.groups()
        factor: int = (1000 if byte and not binary else 1024) ** _UNITS.index(unit)
        return round(float(number) * factor)


class Duration(click.ParamType):
    """`90` and `90s` are 90 seconds, `10m` is ten minutes, and `1h` is an hour."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parses the text in upper or lower case."""
        try:
            return parse_duration(str(value))
        except ValueError:
            self.fail(f"{value!r} is not {EXPECTED_DURATION}.", param, ctx)


class RestartPolicy(click.ParamType):
    """How many failures in a row stop a model for good. `on-failure:3` means 3, and `on-failure` means 5."""

    name = "restart policy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parses a policy in Docker's form."""
        policy, _, number = str(value).partition(":")
        limit = number or ("" if ":" in str(value) else "5")
        if policy != "on-failure" or not (limit.isascii() and limit.isdecimal() and int(limit)):
            self.fail(f"{value!r} is not on-failure or on-failure:N, with N 1 or more.", param, ctx)
        return int(limit)


def spell_size(num_bytes: int) -> str:
    """The size in the largest unit that divides it, such as `16MiB`."""
    for power in range(len(_UNITS) - 1, 0, -1):
        if num_bytes and num_bytes % 1024**power == 0:
            return f"{num_bytes // 1024**power}{_UNITS[power].upper()}iB"
    return str(num_bytes)


class Parsed(click.ParamType):
    """An object that a function makes from the text. The function's ConfigError describes the right form."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ConfigError as err:
            self.fail(str(err), param, ctx)


COMPILE_CACHE: Final = Parsed("location", CompileCacheOption.of)


class LogConfigFile(click.ParamType):
    """A JSON file with a dictionary for `logging.config.dictConfig`."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Reads the file. An error contains the fault and its position in the file."""
        if isinstance(value, dict):
            return value
        try:
            content = read_json(Path(expand_home(value)).read_text(encoding="utf-8"))
        except OSError as err:
            self.fail(f"{value!r} cannot be read: {err.strerror}.", param, ctx)
        except ValueError as err:
            self.fail(f"{value!r} is not JSON: {err}.", param, ctx)
        if not isinstance(content, dict):
            self.fail(f"{value!r} does not contain a JSON object.", param, ctx)
        if content.get("version") != 1:
            self.fail(f'{value!r} is not a logging configuration: "version": 1 is missing.', param, ctx)
        return content


_UNSUPPORTED: Final = (
    *("step_tag_id", "returned_token_ids", "enable_chunked_processing", "max_embed_len"),
    *("logit_mean", "logit_sigma"),
)
"""Keys that only vLLM supports. The values `null` and `false` are accepted, because they change nothing."""


class PoolerOptions(click.ParamType):
    """How a pooling model turns hidden states into vectors or scores."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PoolerConfig:
        """Parses the object. An error names a key that is unknown or not supported by this engine."""
        if isinstance(value, PoolerConfig):
            return value
        given = {key.replace("-", "_"): item for key, item in JsonObject().convert(value, param, ctx).items()}
        given.pop("enable_flash_late_interaction", None)
        if "normalize" in given:
            self.fail("Parameter `normalize` was removed; use `use_activation` instead.", param, ctx)
        known = [field.name for field in fields(PoolerConfig)]
        for key in [key for key in given if key not in known]:
            if key not in _UNSUPPORTED:
                self.fail(f"{key!r} is not one of its keys: {', '.join(known)}.", param, ctx)
            if given.pop(key) not in (None, False):
                self.fail(f"the embedded engine does not support {key}, but `--engine vllm` does.", param, ctx)
        try:
            return PoolerConfig(**given)
        except ConfigError as err:
            self.fail(f"{err}.", param, ctx)
