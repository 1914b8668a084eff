"""Checks the value of one flag with vLLM's conversion, and with vLLM's declared choices and range."""

import json
import operator
import re
from collections.abc import Callable
from typing import Any, Final

from base.json_depth import JsonDepthError, read_json
from base.wording import list_some
from envs.suggestion import did_you_mean, former_form
from startup.storage.keyed_values import parse_size
from startup.vllm_words.facts import FlagFact
from startup.vllm_words.grammar import NO_VALUE

_OBJECT: Final = re.compile(r"(?s)^\s*{.*}\s*$")
_MAX_CHOICES: Final = 12
_QUOTED: Final = re.compile(r'("(?:[^"\\]|\\.)*")')
_BARE_SIZE: Final = re.compile(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b")
_LIMITS: Final = {"ge": "{:g} or more", "gt": "more than {:g}", "le": "{:g} or less", "lt": "less than {:g}"}


class FlagValueError(ValueError):
    """vLLM rejects the value."""


def parse_value(fact: FlagFact, text: str) -> Any:
    """The value as vLLM converts it. None if an optional flag has no value. Raises FlagValueError."""
    value = None if fact.is_optional and text in NO_VALUE else _convert(fact, text)
    if fact.choices is not None and value not in fact.choices:
        choices = [str(choice) for choice in fact.choices if choice is not None]
        guess = did_you_mean(text, choices)
        raise FlagValueError(f"{fact.name} {text!r} is not one of {list_some(choices, _MAX_CHOICES)}{guess}")
    return value


def range_problem(fact: FlagFact, value: Any) -> str | None:
    """Why a number is outside of the range that vLLM declares. None for a number inside of it."""
    if isinstance(value, int | float):
        for kind, limit in fact.limits:
            if not getattr(operator, kind)(value, limit):
                return f"{fact.name} must be {_LIMITS[kind].format(limit)}, got {value}"
    return None


def _convert(fact: FlagFact, text: str) -> Any:
    convert, fault = _CONVERTERS[fact.kind]
    try:
        return convert(text, fact)
    except FlagValueError:
        raise
    except ValueError as err:
        raise FlagValueError(f"{fact.name} {text!r} {fault}{_reason(err, fact)}") from err


def _reason(err: ValueError, fact: FlagFact) -> str:
    if not isinstance(err, json.JSONDecodeError | JsonDepthError):
        return ""
    return former_form(fact.name) or f": {err}"


def _parse_object(text: str, fact: FlagFact) -> Any:
    content = read_json(_expand_sizes(text))
    if not isinstance(content, dict):
        raise FlagValueError(f"{fact.name} {text!r} is not a JSON object{former_form(fact.name)}")
    if fact.fields is not None:
        _check_fields(content, fact.name, fact.fields)
    return content


def _expand_sizes(text: str) -> str:
    """The JSON text with sizes outside of quotes, such as `80g`, written as numbers."""
    parts = _QUOTED.split(text)
    parts[::2] = [_BARE_SIZE.sub(lambda match: str(parse_size(match[0])), part) for part in parts[::2]]
    return "".join(parts)


def _check_fields(content: dict[str, Any], name: str, fields: dict[str, tuple[Any, ...] | None]) -> None:
    for key, value in content.items():
        if key not in fields:
            raise FlagValueError(f"{name} has no field {key!r}{did_you_mean(key, fields)}")
        if (choices := fields[key]) is not None and value not in choices:
            listed = list_some([str(choice) for choice in choices if choice is not None], _MAX_CHOICES)
            raise FlagValueError(f"{name}: {key} {value!r} is not one of {listed}")


_CONVERTERS: Final[dict[str, tuple[Callable[[str, FlagFact], Any], str]]] = {
    "text": (lambda text, _: text, ""),
    "unknown": (lambda text, _: text, ""),
    "int": (lambda text, _: int(text), "is not a whole number"),
    "size": (lambda text, _: parse_size(text), "is not a whole number such as 4096, 4k or 4K"),
    "size or auto": (
        lambda text, _: -1 if text.strip().lower() == "auto" else parse_size(text),
        "is neither auto nor a whole number such as 4096, 4k or 4K",
    ),
    "float": (lambda text, _: float(text), "is not a number"),
    "json": (lambda text, _: read_json(text), "is not JSON"),
    "json or text": (lambda text, _: read_json(text) if _OBJECT.match(text) else text, "is not JSON"),
    "object": (_parse_object, "is not JSON"),
    "folded": (lambda text, _: text.lower().replace("-", "_"), ""),
}
"""`FlagFact.kind` -> vLLM's conversion, and what is wrong with a text if the conversion raises ValueError."""
