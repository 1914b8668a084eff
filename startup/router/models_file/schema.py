"""Checks the keys and types of the file of models by `models.schema.json`, and names those without effect."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

from envs.suggestion import did_you_mean
from startup.router.models_file.document import Findings, KeyPath, show

_SCHEMA: Final = Path(__file__).parents[1] / "models.schema.json"
_TYPES: Final = {
    "object": "a mapping", "array": "a list", "string": "a text", "boolean": "true or false", "null": "nothing",
    "integer": "a whole number", "number": "a number",
}  # fmt: skip
_WITHOUT_EFFECT: Final = {
    "capabilities": "has no effect: clients learn what a model can do from the model's own answers",
    "captureBuffer": "has no effect: no requests are recorded",
    "compat": "has no effect: a WebSocket starts its model and counts as a request",
    "evict_costs": "has no effect: what a stop costs is measured, as the seconds of the last start",
    "includeAliasesInList": "has no effect: /v1/models shows the aliases of each model as a member of it",
    "logHTTPRequests": "has no effect: requests are logged unless --disable-uvicorn-access-log is given",
    "logRequests": "has no effect: requests are logged unless --disable-uvicorn-access-log is given",
    "logTimeFormat": "has no effect: see --log-format and --log-config-file",
    "logToStdout": "has no effect: the lines of all models are written to standard error, with their names",
    "metricsMaxInMemory": "has no effect: see /metrics",
    "peers": "has no effect: route to other servers in a gateway such as LiteLLM in front",
    "performance": "has no effect: see /metrics",
    "profiles": "has no effect: use `aliases`",
    "scheduler": "has no effect: the order is decided by --max-wait, `pinned` and `concurrency`",
    "sendLoadingState": "has no effect: streams get comments (`: starting, load_weights 42 %`) while a model starts",
    "startPort": "has no effect: ${PORT} is a port that is free when the model starts",
    "store": "has no effect: nothing is stored",
    "timeouts": "has no effect: a connection to a model has no limits of time but start_timeout",
    "ui": "has no effect: the status page is at /",
    "unloadTimeout": "has no effect: a model that does not stop within 30 s is killed",
    "upstream": "has no effect: of a stopped model, /upstream/MODEL/... starts it for every path but those of assets",
}
_LIKELY: Final = {
    "bind": "--host and --port",
    "healthCheckTimeout": "`start_timeout`",
    "health_check_timeout": "`start_timeout` of a model, `healthCheckTimeout` of all",
    "host": "--host",
    "listen": "--host and --port",
    "maxRunningModels": "--max-running",
    "max_running_models": "--max-running",
    "port": "--port",
    "ttl": "`globalTTL`",
}
"""What stands here for keys that are spelled differently."""


def load_schema() -> dict[str, Any]:
    """The JSON schema of the file."""
    schema: dict[str, Any] = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return schema


def check_structure(document: Any, findings: Findings) -> set[KeyPath]:
    """Reports what does not fit the schema, and keys that have no effect; returns where it does not fit."""
    wrong: set[KeyPath] = set()
    faulty = tuple(findings.fault_paths)  # of macros: what stands for them need not fit
    for err in Draft202012Validator(load_schema()).iter_errors(document):
        path = tuple(err.absolute_path)
        if err.validator == "additionalProperties":  # the other keys can be checked
            _report_unknown(err, path, findings)
            continue
        wrong.add(path)
        if any(each[: len(path)] == path for each in faulty):
            continue
        for place, text in _describe(err, path):
            findings.fault(place, text)
    if isinstance(document, dict):
        _report_ignored(document, findings)
    return wrong


def _report_unknown(err: Any, path: KeyPath, findings: Findings) -> None:
    """In a file of llama-swap they have no effect; what an anchor is for has one."""
    known = err.schema.get("properties", {})
    for key in err.instance:
        if key in known or key.startswith("x-") or (not path and key in findings.anchored):
            continue
        hint = f": see {_LIKELY[key]}" if key in _LIKELY else did_you_mean(key, known)
        if findings.is_lenient:
            findings.notice((*path, key), f"is not known here, and has no effect{hint}")
        else:
            hint = hint or f"; known are {', '.join(known)}"
            findings.fault((*path, key), f"is not known here{hint}")


def _describe(err: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """The place and the text of each fault that the schema's error stands for."""
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
        yield path, f"{expected or _expectation(err)}, got {_shown(value, path)}"


def _expectation(err: Any) -> str:
    wanted = err.validator_value
    match err.validator:
        case "type":
            types = [wanted] if isinstance(wanted, str) else [each for each in wanted if each != "null"]
            return f"must be {' or '.join(_TYPES[each] for each in types)}"
        case "enum":
            hint = did_you_mean(err.instance, wanted) if isinstance(err.instance, str) else ""
            return f"must be one of {', '.join(wanted)}{hint}"
        case "minimum":
            return f"must be {wanted} or more"
        case "maximum":
            return f"must be {wanted} or less"
        case "minLength":
            return "must not be empty"
    return f"does not fit: {err.validator} {wanted}"


def _shown(value: Any, path: KeyPath) -> str:
    """Of a collection only its kind: it may contain secrets."""
    if isinstance(value, dict | list):
        return _TYPES["object" if isinstance(value, dict) else "array"]
    return show(value, path)


def _report_ignored(document: Mapping[str, Any], findings: Findings) -> None:
    """Keys of llama-swap that have no effect here."""
    for key in document:
        if key in _WITHOUT_EFFECT:
            findings.notice((key,), _WITHOUT_EFFECT[key])
    models = document.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        for key in model if isinstance(model, dict) else ():
            if key in _WITHOUT_EFFECT:
                findings.notice(("models", name, key), _WITHOUT_EFFECT[key])
    for path in (("matrix", "evict_costs"), ("routing", "scheduler")):
        part = document.get(path[0])
        if isinstance(part, dict) and path[1] in part:
            findings.notice(path, _WITHOUT_EFFECT[path[1]])
