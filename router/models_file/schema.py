"""Checks the keys and types of the file of models by `models.schema.json`. Reports keys without effect."""

import json
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

from envs.suggestion import did_you_mean
from router.models_file.document import Findings, KeyPath, show

_SCHEMA: Final = Path(__file__).parents[1] / "models.schema.json"
_TYPES: Final = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "boolean": "true or false",
    "null": "nothing",
    "integer": "a whole number",
    "number": "a number",
}
_WHAT_RUNS: Final = ("cmd", "proxy", "model")
"""The keys of which each model has one, unless its name is that of its repository."""
_SLIP: Final = 0.85
"""The least similarity of two keys of which one is a slip."""
_LIKELY: Final = {
    "address": "`proxy`",
    "arguments": "`args`",
    "bind": "--host and --port",
    "command": "`cmd`",
    "commandLine": "`cmd`",
    "endpoint": "`proxy`",
    "environment": "`env`",
    "exec": "`cmd`",
    "healthCheckTimeout": "`start_timeout`",
    "health_check_timeout": "`start_timeout` of a model, `healthCheckTimeout` of all",
    "host": "--host",
    "listen": "--host and --port",
    "maxRunningModels": "--max-running",
    "max_running_models": "--max-running",
    "on_request": "`filters` of a model, which remove and set keys",
    "peer": "`proxy`, which takes the address of another server",
    "policies": "`filters` of a model, which remove and set keys",
    "policy": "`stripParams` and `setParams`",
    "port": "--port",
    "reasoning": "`setParamsByID`, for the model under several names",
    "security": "--allowed-origins, for pages that may read answers",
    "setParamsByMatch": "`setParamsByID`, for the model under several names",
    "ttl": "`globalTTL`",
    "unload": "`ttl` of a model, `globalTTL` of all",
    "unloadAfter": "`ttl` of a model, `globalTTL` of all",
    "url": "`proxy`",
}
"""A wrong name that users may write -> the hint about the right name."""


@cache
def load_schema() -> dict[str, Any]:
    """The JSON schema of the file."""
    schema: dict[str, Any] = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return schema


def check_structure(document: Any, findings: Findings) -> set[KeyPath]:
    """Reports values that do not fit the schema, and keys without effect. Returns the wrong values' paths."""
    wrong: set[KeyPath] = set()
    faulty = tuple(findings.fault_paths)  # faults of macros: such a text need not fit
    for err in Draft202012Validator(load_schema()).iter_errors(document):
        path = tuple(err.absolute_path)
        if err.validator == "additionalProperties":  # checks the other keys all the same
            _report_unknown(err, path, findings)
            continue
        wrong.add(path)
        if any(each[: len(path)] == path for each in faulty):
            continue
        for place, text in _describe(err, path):
            findings.fault(place, text)
    _report_ignored(document, load_schema(), (), findings)
    return wrong


def _report_unknown(err: Any, path: KeyPath, findings: Findings) -> None:
    """Reports unknown keys, as notices in a file for llama-swap. Keys used through anchors are allowed.

    In a file for llama-swap, a similar key may mean something else, so only a key with a slip is suggested.
    """
    known = err.schema.get("properties", {})
    for key in err.instance:
        if key in known or key.startswith("x-") or (not path and key in findings.anchored):
            continue
        if _is_model(err.instance[key]):
            where = "below `models`, beside the other models" if path else "below `models`"
            findings.fault((*path, key), f"looks like a model in the wrong place: indent it {where}")
            continue
        similar = [name for name in known if not findings.is_lenient or _is_slip(key, name)]
        hint = f": see {_LIKELY[key]}" if key in _LIKELY else did_you_mean(key, similar)
        if findings.is_lenient and not _says_what_runs(key, err.instance):
            findings.notice(
                (*path, key), f"is not known here, and has no effect{hint or '; there is no key for it here'}"
            )
        else:
            hint = hint or f"; known are {', '.join(known)}"
            findings.fault((*path, key), f"is not known here{hint}")


def _is_model(value: Any) -> bool:
    """Whether the value of an unknown key has keys that only models have."""
    return isinstance(value, dict) and any(isinstance(value.get(key), str) for key in _WHAT_RUNS)


def _says_what_runs(key: str, keys: Mapping[str, Any]) -> bool:
    """Whether another word for `cmd`, `proxy` or `model` is all that says what runs, so that it matters."""
    meant = _LIKELY.get(key, "").strip("`")
    return meant in _WHAT_RUNS and not any(keys.get(each) for each in _WHAT_RUNS)


def _is_slip(given: str, name: str) -> bool:
    """Whether both are the same but for a letter, case or underscores."""
    first, second = (each.replace("_", "").replace("-", "").lower() for each in (given, name))
    return SequenceMatcher(None, first, second).ratio() > _SLIP


def _describe(err: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yields the path and the text of each fault that an error of the schema contains."""
    schema, value = err.schema, err.instance
    expected = schema.get("errorMessage") if isinstance(schema, dict) else None
    if "propertyNames" in err.absolute_schema_path:
        yield (*path, str(value)), expected or f"must be a name that matches {err.validator_value}"
    elif err.validator == "required":
        missing = [key for key in err.validator_value if key not in value]
        yield path, f"must have the key {' and '.join(missing)}"
    elif err.validator in ("minProperties", "minItems"):
        yield path, "must not be empty"
    elif err.validator == "maxProperties":
        yield path, f"must have at most {err.validator_value} keys, got {len(value)}"
    elif expected is not None and err.validator in ("not", "if", "allOf"):
        yield path, expected
    else:
        is_outside = len(path) == 2 and path[0] == "models" and path[1] in _WHAT_RUNS
        is_of_dashes = err.validator == "type" and isinstance(value, list)
        hint = ""
        if is_outside:
            hint = ": is it a key of the model above? Indent it below the model's name"
        elif is_of_dashes:
            hint = ": leave out the dash, which makes a list"
        yield path, f"{expected or _expectation(err)}, got {_shown(value, path)}{hint}"


def _expectation(err: Any) -> str:
    wanted = err.validator_value
    match err.validator:
        case "type":
            types = [wanted] if isinstance(wanted, str) else [each for each in wanted if each != "null"]
            return f"must be {' or '.join(_TYPES[each] for each in types)}"
        case "enum":
            hint = did_you_mean(err.instance, map(str, wanted)) if isinstance(err.instance, str) else ""
            return f"must be one of {', '.join(map(str, wanted))}{hint}"
        case "minimum":
            return f"must be {wanted} or more"
        case "maximum":
            return f"must be {wanted} or less"
        case "minLength":
            return "must not be empty"
    return f"does not fit: {err.validator} {wanted}"


def _shown(value: Any, path: KeyPath) -> str:
    """The text of a value in a message. Only the type of a collection is shown, which may have secrets."""
    if isinstance(value, dict | list):
        return _TYPES["object" if isinstance(value, dict) else "array"]
    return show(value, path)


def _report_ignored(document: Any, schema: Mapping[str, Any], path: KeyPath, findings: Findings) -> None:
    """Reports keys of llama-swap that have no effect here. The schema marks these keys as deprecated."""
    while "$ref" in schema:
        schema = load_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    if schema.get("deprecated"):
        findings.notice(path, schema["description"])
    elif isinstance(document, dict):
        others = schema.get("additionalProperties") or {}
        properties = schema.get("properties", {})
        for key, value in document.items():
            _report_ignored(value, properties.get(key, others), (*path, key), findings)
