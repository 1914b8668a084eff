"""JSON flags written key by key, as in vLLM: `--flag.key1 value --flag.key2.key3+ a,b`."""

import json
from typing import Any

import click

from vllm_cli.flags.param_types import HumanInt


def nest(keys: str, text: str) -> dict[str, Any]:
    """`nest("a.b", "1")` is `{"a": {"b": 1}}`; a `+` after the last key makes a list of `text`'s items."""
    if keys.endswith("+"):
        keys = keys.removesuffix("+")
        nested: Any = [_parse(item) for item in text.split(",")]
    else:
        nested = _parse(text)
    for key in reversed(keys.split(".")):
        nested = {key: nested}
    return dict(nested)


def merge(into: dict[str, Any], update: dict[str, Any]) -> None:
    """Adds `update` to `into`: extends objects and lists, replaces anything else."""
    for key, new in update.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old.extend(new)
        else:
            into[key] = new


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return HumanInt().convert(text, None, None)
    except click.BadParameter:
        return text
