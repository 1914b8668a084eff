"""Checks the value of one flag with vLLM's conversion, and with vLLM's declared choices and range."""

import json
import re
from collections.abc import Callable
from os.path import isfile
from pathlib import Path
from typing import Any, Final

from base.json_depth import JsonDepthError, read_json
from base.json_form import json_form
from base.wording import list_some
from envs.suggestion import did_you_mean, former_form
from startup.settings.flag import NO_VALUE, Flag, Shape
from startup.storage.keyed_values import parse_size
from startup.vllm_words.json_shape import limit_problem, shape_problem

_OBJECT: Final = re.compile(r"(?s)^\s*{.*}\s*$")
_MAX_CHOICES: Final = 12
_QUOTED: Final = re.compile(r'("(?:[^"\\]|\\.)*")')
_BARE_SIZE: Final = re.compile(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b")


class FlagValueError(ValueError):
    """vLLM rejects the value."""


def parse_value(fact: Flag, text: str) -> Any:
    """The value as vLLM converts it. None if an optional flag has no value. Raises FlagValueError."""
    value = None if fact.is_optional and text in NO_VALUE else _convert(fact, text)
    if fact.choices is not None and value not in fact.choices:
        choices = [str(choice) for choice in fact.choices if choice is not None]
        guess = did_you_mean(text, choices)
        raise FlagValueError(f"{fact.name} {text!r} is not one of {list_some(choices, _MAX_CHOICES)}{guess}")
    return value


def range_problem(fact: Flag, value: Any) -> str | None:
    """Why a number is outside of the range that vLLM declares. None for a number inside of it."""
    problem = limit_problem(fact.limits, value)
    return problem and f"{fact.name} {problem}"


def _convert(fact: Flag, text: str) -> Any:
    convert, fault = _CONVERTERS[fact.kind]
    try:
        return convert(text, fact)
    except FlagValueError:
        raise
    except (OSError, ValueError) as err:
        raise FlagValueError(f"{fact.name} {text!r} {fault}{_reason(err, fact, text)}") from err


def _reason(err: Exception, fact: Flag, text: str) -> str:
    if not isinstance(err, json.JSONDecodeError | JsonDepthError):
        return ""
    return json_form(text) or former_form(fact.name) or f": {err}"


def _parse_object(text: str, fact: Flag) -> Any:
    content = read_json(_expand_sizes(text))
    if not isinstance(content, dict):
        hint = (isinstance(content, str) and json_form(text)) or former_form(fact.name)
        raise FlagValueError(f"{fact.name} {text!r} is not a JSON object{hint}")
    if (problem := shape_problem(fact.shape or Shape(), content, fact.name)) is not None:
        raise FlagValueError(problem)
    return content


def _expand_sizes(text: str) -> str:
    """The JSON text with sizes outside of quotes, such as `80g`, written as numbers."""
    parts = _QUOTED.split(text)
    parts[::2] = [_BARE_SIZE.sub(lambda match: str(parse_size(match[0])), part) for part in parts[::2]]
    return "".join(parts)


_CONVERTERS: Final[dict[str, tuple[Callable[[str, Flag], Any], str]]] = {
    "text": (lambda text, _: text, ""),
    "unknown": (lambda text, _: text, ""),
    "int": (lambda text, _: int(text), "is not a whole number"),
    "count": (lambda text, _: parse_size(text), "is not a whole number such as 4096, 4k or 4K"),
    "token limit": (
        lambda text, _: -1 if text.strip().lower() == "auto" else parse_size(text),
        "is neither auto nor a whole number such as 4096, 4k or 4K",
    ),
    "float": (lambda text, _: float(text), "is not a number"),
    "json": (lambda text, _: read_json(text), "is not JSON"),
    "json or text": (lambda text, _: read_json(text) if _OBJECT.match(text) else text, "is not JSON"),
    "json or file": (
        lambda text, _: read_json(Path(text).read_text() if isfile(text) else text),  # noqa: PTH113 - takes any text
        "is neither JSON nor a file of JSON",
    ),
    "object": (_parse_object, "is not JSON"),
    "lower": (lambda text, _: text.lower(), ""),
    "folded": (lambda text, _: text.lower().replace("-", "_"), ""),
}
"""`Flag.kind` -> vLLM's conversion, and what is wrong with a text if the conversion raises ValueError."""
