"""Types of flag values that click does not have. A function reads each of them from a text."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Final

import click

from base.errors import ConfigError
from base.json_depth import JsonDepthError, read_json
from base.json_form import json_fault, json_form
from envs.foreign import expand_home
from envs.suggestion import did_you_mean, former_form
from envs.variable import EXPECTED_DURATION, parse_duration
from server.terms.config import PoolerConfig
from startup.settings.config import CompileCacheOption
from startup.settings.flag import Flag, ValueKind, parse_size


class Parsed(click.ParamType):
    """A value that a function reads from a text. The function's ValueError has the message for the user."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parses a text. Any other value comes from a variable, which has converted it."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except (JSONDecodeError, JsonDepthError) as err:
            hint = json_form(value) or (former_form(param.opts[0]) if param is not None else "")
            self.fail(f"{value!r} is not JSON{hint or json_fault(value) or f': {err}'}.", param, ctx)
        except ValueError as err:
            self.fail(str(err), param, ctx)


class TokenizerModes(click.Choice):
    """The tokenizer modes that the embedded engine has."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Rejects vLLM's other modes, such as the modes of Mistral, Grok-2 and DeepSeek-V3.2."""
        if value not in self.choices:
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}. Others need --engine vllm.", param, ctx)
        return value


def _count(text: str) -> int:
    """A whole number, possibly with a suffix, as `parse_size` reads it."""
    try:
        return parse_size(text)
    except ValueError:
        problem = "is not a whole number such as 4096, 4k or 4K"
        with suppress(ValueError):
            parse_size(text.lower())
            problem = f"has a fraction and a binary suffix{did_you_mean(text, [text.lower()])}"
        raise ValueError(f"{text!r} {problem}.") from None


def _token_limit(text: str) -> int | None:
    """A whole number. `auto` and -1 stand for the model's own limit, which is None."""
    return None if text.strip().lower() in ("auto", "-1") else _count(text)


def _json_object(text: str) -> dict[str, Any]:
    parsed = read_json(text)
    if not isinstance(parsed, dict):
        raise ValueError(f"{text!r} is not a JSON object.")
    return parsed


def _json_strings(text: str) -> tuple[str, ...]:
    parsed = read_json(text)
    if not isinstance(parsed, list) or not all(isinstance(item, str) for item in parsed):
        raise ValueError(f"""{text!r} is not a JSON list of strings such as '["*"]'.""")
    return tuple(parsed)


def _comma_list(text: str) -> tuple[str, ...]:
    """Words separated by commas. Ignores blanks around words, and empty words."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _chat_template(text: str) -> str:
    """A template from a file. A text that is not a file must contain braces or several lines, as in vLLM."""
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        if any(character in text for character in "{}\n"):
            return text
        reason = getattr(err, "strerror", None) or err
        raise ValueError(f"{text!r} is neither a template nor a readable file ({reason}).") from err


_UNITS: Final = ("", "k", "m", "g", "t")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)")


def _num_bytes(text: str) -> int:
    """`16MiB` and `16M` are 16 times 2**20 bytes, `16MB` is 16 million, `16777216` is bytes. Ignores case."""
    match = _SIZE.fullmatch(text.strip().lower())
    if not match or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is not a size such as 16MiB, 16M or 16777216.")
    number, unit, binary, byte = match.groups()
    factor: int = (1000 if byte and not binary else 1024) ** _UNITS.index(unit)
    return round(float(number) * factor)


def spell_size(num_bytes: int) -> str:
    """The size in the largest unit that divides it, such as `16MiB`."""
    for power in range(len(_UNITS) - 1, 0, -1):
        if num_bytes and num_bytes % 1024**power == 0:
            return f"{num_bytes // 1024**power}{_UNITS[power].upper()}iB"
    return str(num_bytes)


def _duration_s(text: str) -> float:
    """`90` and `90s` are 90 seconds, `10m` is ten minutes, and `1h` is an hour. Ignores case."""
    try:
        return parse_duration(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {EXPECTED_DURATION}.") from None


def _restart_limit(text: str) -> int:
    """How many failures in a row stop a model for good. `on-failure:3` means 3, and `on-failure` means 5."""
    policy, colon, number = text.partition(":")
    limit = number if colon else "5"
    if policy != "on-failure" or not (limit.isascii() and limit.isdecimal() and int(limit)):
        raise ValueError(f"{text!r} is not on-failure or on-failure:N, with N 1 or more.")
    return int(limit)


def _log_config(text: str) -> dict[str, Any]:
    """A dictionary for `logging.config.dictConfig`, from a JSON file."""
    try:
        content = read_json(Path(expand_home(text)).read_text(encoding="utf-8"))
    except OSError as err:
        raise ValueError(f"{text!r} cannot be read: {err.strerror}.") from err
    except UnicodeDecodeError as err:
        raise ValueError(f"{text!r} is not JSON: {err}.") from err
    if not isinstance(content, dict):
        raise ValueError(f"{text!r} does not contain a JSON object.")
    if content.get("version") != 1:
        raise ValueError(f'{text!r} is not a logging configuration: "version": 1 is missing.')
    return content


_ONLY_VLLM: Final = (
    *("step_tag_id", "returned_token_ids", "enable_chunked_processing", "max_embed_len"),
    *("logit_mean", "logit_sigma"),
)
"""Keys that only vLLM supports. The values `null` and `false` are accepted, because they change nothing."""


def _pooler(text: str) -> PoolerConfig:
    """How a pooling model turns hidden states into vectors or scores. Rejects unsupported keys."""
    settings = {key.replace("-", "_"): item for key, item in _json_object(text).items()}
    settings.pop("enable_flash_late_interaction", None)
    if "normalize" in settings:
        raise ValueError("Parameter `normalize` was removed; use `use_activation` instead.")
    known = [field.name for field in fields(PoolerConfig)]
    for key in [key for key in settings if key not in known]:
        if key not in _ONLY_VLLM:
            raise ValueError(f"{key!r} is not one of its keys: {', '.join(known)}.")
        if settings.pop(key) not in (None, False):
            raise ValueError(f"the embedded engine does not support {key}, but `--engine vllm` does.")
    try:
        return PoolerConfig(**settings)
    except ConfigError as err:
        raise ValueError(f"{err}.") from err


SIZE: Final = Parsed("size", _num_bytes)
DURATION: Final = Parsed("duration", _duration_s)

_BY_KIND: Final[dict[ValueKind, click.ParamType | None]] = {
    "text": None,
    "int": click.INT,
    "float": click.FLOAT,
    "object": Parsed("json", _json_object),
    "pooler": Parsed("json", _pooler),
    "path": click.Path(path_type=Path),
    "count": Parsed("integer", _count),
    "size": SIZE,
    "compile cache": Parsed("location", CompileCacheOption.of),
    "duration": DURATION,
    "restart policy": Parsed("restart policy", _restart_limit),
    "token limit": Parsed("integer|auto", _token_limit),
    "optional text": None,
    "JSON list": Parsed("json list", _json_strings),
    "comma list": Parsed("list", _comma_list),
    "template": Parsed("file|template", _chat_template),
    "log config": Parsed("file", _log_config),
    "tokenizer mode": TokenizerModes(("auto", "hf")),
}


def click_type(flag: Flag) -> click.ParamType | None:
    """The type to which click converts a flag's value. None for text, switches and lists of texts."""
    if flag.choices:
        return click.Choice(flag.choices, case_sensitive=not flag.choices[0].isupper())
    return _BY_KIND[flag.kind]
