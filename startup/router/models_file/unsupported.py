"""Keys of llama-swap that have no effect here, or are not supported: each is named once, with a remedy."""

from collections.abc import Mapping
from typing import Any, Final

from startup.router.models_file.document import Findings, KeyPath

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
