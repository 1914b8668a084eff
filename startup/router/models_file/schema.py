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
_UNUSED: Final = {
    "capabilities": "has no effect: clients learn what a model can do from the model's own answers",
    "captureBuffer": "has no effect: no requests are recorded",
    "includeAliasesInList": "has no effect: /v1/models shows the aliases of each model as a member of it",
    "logHTTPRequests": "has no effect: requests are logged unless --disable-uvicorn-access-log is given",
    "logRequests": "has no effect: requests are logged unless --disable-uvicorn-access-log is given",
    "logTimeFormat": "has no effect: see --log-format and --log-config-file",
    "logToStdout": "has no effect: the lines of all models are written to standard error, with their names",
    "metricsMaxInMemory": "has no effect: see /metrics",
    "performance": "has no effect: see /metrics",
    "sendLoadingState": "has no effect: streams get comments (`: starting, load_weights 42 %`) while a model starts",
    "store": "has no effect: nothing is stored",
    "timeouts": "has no effect: a connection to a model has no limits of time but start_timeout",
    "ui": "has no effect: the status page is at /",
    "unloadTimeout": "has no effect: a model that does not stop within 30 s is killed",
    "upstream": "has no effect: /upstream/MODEL/... passes every path on",
}
_UNSUPPORTED: Final = {
    "filters": "is not supported, requests are passed on unchanged: for defaults of sampling, use "
    "--override-generation-config in args",
    "matrix": "is not supported: which models run together is decided by memory (--memory-budget, --max-running), "
    "`pinned` and `groups`",
    "peers": "is not supported: route to other servers in a gateway such as LiteLLM in front",
    "profiles": "is not supported: use `aliases`",
    "routing": "is not supported: the order is decided by --max-wait, `pinned` and `concurrency`",
    "useModelName": "is not supported, the request's name is passed on: let the server accept it, as llama-server "
    "does, or use --served-model-name",
}


def load_schema() -> dict[str, Any]:
    """The JSON schema of the file."""
    schema: dict[str, Any] = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return schema


def check_structure(document: Any, findings: Findings) -> set[KeyPath]:
    """Reports what does not fit the schema; returns where."""
    wrong: set[KeyPath] = set()
    for err in Draft202012Validator(load_schema()).iter_errors(document):
        path = tuple(err.absolute_path)
        if err.validator != "additionalProperties":  # the other keys can be checked
            wrong.add(path)
        for place, text in _describe(err, path):
            findings.fault(place, text)
    return wrong


def _describe(err: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """The place and the text of each fault that the schema's error stands for."""
    schema, value = err.schema, err.instance
    expected = schema.get("errorMessage") if isinstance(schema, dict) else None
    if err.validator == "additionalProperties":
        known = schema.get("properties", {})
        for key in value:
            if key not in known and not key.startswith("x-"):
                hint = did_you_mean(key, known) or f"; known are {', '.join(known)}"
                yield (*path, key), f"is not known here{hint}"
    elif "propertyNames" in err.absolute_schema_path:
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


def report_unsupported(document: Mapping[str, Any], findings: Findings) -> None:
    """One notice for each key of llama-swap that has no effect here, where it is first."""
    places: dict[str, list[KeyPath]] = {}
    for key in document:
        if key in _UNUSED or key in _UNSUPPORTED:
            places.setdefault(key, []).append((key,))
    models = document.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        for key in model if isinstance(model, dict) else ():
            is_recognised = key == "useModelName" and model.get(key) in ("", None)
            if (key in _UNUSED or key in _UNSUPPORTED) and not is_recognised:
                places.setdefault(key, []).append(("models", name, key))
    for key, paths in places.items():
        more = f" (in {len(paths)} places)" if len(paths) > 1 else ""
        findings.notice(paths[0], f"{_UNUSED.get(key) or _UNSUPPORTED[key]}{more}")
