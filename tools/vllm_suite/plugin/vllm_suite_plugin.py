"""A pytest plugin, loaded in vLLM's environment: leaves out tests without a server, and records results.

Tests start servers with the command `vllm`, found in this process's PATH. Results are
appended as JSON lines to the file that VLLM_SUITE_RESULTS names.
"""

import json
import os
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

_RESULTS = Path(os.environ["VLLM_SUITE_RESULTS"])
_NO_SERVER = "starts no server: tests vLLM's own modules in its process"
_OLD_MODULE = "vllm.entrypoints.openai.api_server"
"""What some tests run instead of the command `vllm serve`."""
_begun: list[str] = []
"""Files whose tests have begun, in order."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests that start no server."""
    _prepare_servers()
    without = [item for item in items if not _starts_server(item)]
    for item in without:
        _record(item.nodeid, "not applicable", _NO_SERVER)
    config.hook.pytest_deselected(items=without)
    files = dict.fromkeys(item.nodeid.partition("::")[0] for item in items)
    items[:] = [item for item in items if item not in without]
    for file in files.keys() - {item.nodeid.partition("::")[0] for item in items}:
        _record(file, "end")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Records where the tests of a file begin and end; files whose tests are all left out end at once."""
    file = item.nodeid.partition("::")[0]
    if _begun[-1:] != [file]:
        _begun.append(file)
        _record(file, "begin")
    result = yield
    if nextitem is None or nextitem.nodeid.partition("::")[0] != file:
        _record(file, "end")
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Records the outcome of a test, or of its fixtures if these fail."""
    if report.when == "call" or report.outcome != "passed":
        reason = "" if report.passed else _reason(report)
        outcome = report.outcome if report.when != "teardown" else "passed"
        _record(report.nodeid, "not applicable" if outcome == "skipped" else outcome, reason)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Records a file that cannot be imported, or skips itself."""
    if report.nodeid.endswith(".py") and not report.passed:
        _record(report.nodeid, "not applicable" if report.skipped else "failed", _reason(report))
        _record(report.nodeid, "end")


def _prepare_servers() -> None:
    """All models are local, and no GPU's memory is awaited."""
    from tests.utils import RemoteVLLMServer

    RemoteVLLMServer._pre_download_model = lambda self, model, args: None
    RemoteVLLMServer._get_gpu_memory_used = lambda self: None
    start = subprocess.Popen.__init__

    def start_command(self: Any, args: Any, *others: Any, **options: Any) -> None:
        start(self, _as_command(args), *others, **options)

    subprocess.Popen.__init__ = start_command  # type: ignore[method-assign]


def _as_command(args: Any) -> Any:
    """Words that run the API server's module, with the command `vllm serve` in its place."""
    if not isinstance(args, list) or _OLD_MODULE not in args:
        return args
    words = args[args.index(_OLD_MODULE) + 1 :]
    model = words.index("--model")
    return ["vllm", "serve", words[model + 1], *words[:model], *words[model + 2 :]]


def _starts_server(item: pytest.Item) -> bool:
    """Whether the test, or a fixture that it uses, refers to a class of servers or to the command."""
    if not isinstance(item, pytest.Function):
        return True
    seen: set[CodeType] = set()
    return any(_mentions_server(function, seen) for function in _functions(item))


def _functions(item: pytest.Function) -> list[object]:
    """The test and all fixtures that it uses, those included that `request.getfixturevalue` may ask for."""
    functions: list[object] = [item.function]
    names, seen = set(item._fixtureinfo.name2fixturedefs), set[str]()
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    while names:
        name = names.pop()
        seen.add(name)
        for definition in item.session._fixturemanager.getfixturedefs(name, item) or ():
            functions.append(definition.func)
            names |= set(definition.argnames)
        for code in (code for function in functions for code in _codes(_unwrapped(function).__code__)):
            if "getfixturevalue" in code.co_names:
                names |= {text for text in [*parameters, *_strings(code)] if isinstance(text, str)}
        names -= seen
    return functions


def _unwrapped(function: Any) -> Any:
    function = getattr(function, "__wrapped__", function)
    return getattr(function, "__func__", function)


def _mentions_server(function: object, seen: set[CodeType]) -> bool:
    function = _unwrapped(function)
    if not isinstance(function, FunctionType) or function.__code__ in seen:
        return False
    seen.add(function.__code__)
    if "schemathesis" in function.__module__:
        return True
    codes = list(_codes(function.__code__))
    names = {name for code in codes for name in code.co_names}
    if "subprocess" in names and any({"vllm", _OLD_MODULE} & _strings(code) for code in codes):
        return True
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    return any(_is_server_class(value) or _mentions_server(value, seen) for value in found if _is_from_tests(value))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _strings(code: CodeType) -> set[object]:
    """The constants of the code, and the members of those that are tuples."""
    return {part for constant in code.co_consts for part in (constant if isinstance(constant, tuple) else [constant])}


def _is_from_tests(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("tests.")


def _is_server_class(value: object) -> bool:
    return isinstance(value, type) and any(base.__name__ == "RemoteVLLMServer" for base in value.__mro__)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr).strip().splitlines()[-1]
    if "Server exited" in text:
        text = f"the server exited: {_last_line(report)}"
    return text[:500]


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What a server wrote last before it exited."""
    lines = [line for _, text in report.get_sections("Captured stderr") for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "without a message"


def _record(nodeid: str, outcome: str, reason: str = "") -> None:
    with _RESULTS.open("a") as file:
        file.write(json.dumps({"test": nodeid, "outcome": outcome, "reason": reason}) + "\n")
