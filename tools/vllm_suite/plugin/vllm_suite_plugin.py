"""A pytest plugin for vLLM's environment. It chooses the tests that are relevant for this program.

Tests start servers with the command `vllm` on PATH. The outcome of each test with a server is kept in
results.json. The embedded engine runs all tests except those that a plain vLLM has failed, such as tests of a
certain model's answers. `--server vllm` asks plain vLLM for the tests that the embedded engine has failed.
Files that start no server are left out. Tests that not_applicable.yaml lists are left out, too, except its
known failures, which are expected to fail.
"""

import fcntl
import fnmatch
import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

_LISTS = Path(os.environ["VLLM_SUITE_LISTS"])
"""The folder of results.json and not_applicable.yaml."""
_SERVER = os.environ["VLLM_SUITE_SERVER"]
"""`embedded` or `vllm`."""
_RESULTS = _LISTS / "results.json"
_ENTRYPOINTS = "tests/entrypoints/"
_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.launchers.api_server.entry")
"""The modules that some tests run instead of the command `vllm serve`."""
_REJECTED = {"--enable-lora": 0, "--lora-modules": 1, "--max-lora-rank": 1, "--max-cpu-loras": 1}
_REJECTED |= {"--enable-per-request-metrics": 0}
"""Flag that the embedded engine rejects -> the number of its values. Few tests depend on it."""
_SERVER_WORDS = ("Remote", '"vllm"', *_MODULES, "schemathesis")
"""A file starts servers only if it, or a conftest.py in a folder above, contains one of these texts."""
_servers: list[Any] = []
"""Every process that the tests started with the command `vllm`."""
_num_servers_before: dict[str, int] = {}
"""Test -> how many servers other tests had started before it."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out complete files before they are imported."""
    name = collection_path.relative_to(config.rootpath).as_posix()
    if collection_path.suffix != ".py" or not name.startswith(_ENTRYPOINTS):
        return None
    not_applicable = _reason("not_applicable", name) is not None
    return True if not_applicable or not _may_start_server(collection_path, config.rootpath) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests that do not apply, and marks known failures."""
    _prepare_servers()
    outcomes = _read_outcomes()
    chosen = [
        item
        for item in items
        if _reason("not_applicable", item.nodeid) is None and _has_to_run(outcomes.get(item.nodeid, {}))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in chosen if _SERVER == "embedded" else ():
        if why := _reason("known_failures", item.nodeid):
            item.add_marker(pytest.mark.xfail(reason=why, strict=False))


def _has_to_run(outcome: dict[str, str]) -> bool:
    """Whether this server runs a test with these outcomes."""
    if _SERVER == "vllm":
        return outcome.get("embedded") == "failed"
    return all(each != "failed" for server, each in outcome.items() if server != "embedded")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Counts the servers before a test, because a server that a fixture started serves several tests."""
    _num_servers_before[nodeid] = len(_servers)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps the outcome of a test with a server. If a fixture fails, the test has failed."""
    has_server = len(_servers) > _num_servers_before[report.nodeid] or any(one.poll() is None for one in _servers)
    if has_server and (report.when == "call" or report.failed):
        outcome = "failed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        if outcome != "skipped":
            _keep(report.nodeid, outcome)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Ends the process after the summary, because some tests that fail leave a thread that never ends."""

    def end() -> None:
        sys.stdout.flush()
        os._exit(int(exitstatus))

    session.config.add_cleanup(end)


def _keep(test: str, outcome: str) -> None:
    """Adds an outcome to the file at once, because several runs may be under way and may be interrupted."""
    with (_LISTS / "not_applicable.yaml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcomes = _read_outcomes()
        outcomes.setdefault(test, {})["embedded" if _SERVER == "embedded" else f"vllm {_release()}"] = outcome
        kept = {"tests of": _release(), "outcomes": {name: outcomes[name] for name in sorted(outcomes)}}
        _RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def _read_outcomes() -> dict[str, dict[str, str]]:
    """Test -> server -> `passed` or `failed`. With another release's tests, only those of plain vLLM."""
    results = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {"tests of": "", "outcomes": {}}
    outcomes: dict[str, dict[str, str]] = results["outcomes"]
    if results["tests of"] != _release():
        outcomes = {
            test: {name: each for name, each in of.items() if name != "embedded"} for test, of in outcomes.items()
        }
    return outcomes


@cache
def _release() -> str:
    return version("vllm").partition("+")[0]


def _reason(group: str, test: str) -> str | None:
    """Why this list contains a file or test, or None. Patterns are fnmatch's, with ( ) instead of [ ]."""
    groups = _read_lists()[group] or {}
    name = test.removeprefix(_ENTRYPOINTS).replace("[", "(").replace("]", ")")
    found = (why for why, patterns in groups.items() if any(fnmatch.fnmatchcase(name, one) for one in patterns))
    return next(found, None)


@cache
def _read_lists() -> dict[str, dict[str, list[str]] | None]:
    """List -> reason -> patterns of files or tests."""
    return yaml.safe_load((_LISTS / "not_applicable.yaml").read_text())


def _may_start_server(path: Path, root: Path) -> bool:
    """Searches the file, and each conftest.py in its folders up to entrypoints, for `_SERVER_WORDS`."""
    folders = [folder for folder in path.parents if folder.is_relative_to(root / _ENTRYPOINTS)]
    files = [path, *(folder / "conftest.py" for folder in folders)]
    return any(word in file.read_text() for file in files if file.exists() for word in _SERVER_WORDS)


def _prepare_servers() -> None:
    """Patches the tests' servers, so that they use local models and our command, and ignore GPU memory."""
    from tests.utils import RemoteVLLMServer

    RemoteVLLMServer._pre_download_model = lambda self, model, args: None
    RemoteVLLMServer._get_gpu_memory_used = lambda self: None
    start = subprocess.Popen.__init__

    def start_command(self: Any, args: Any, *others: Any, **options: Any) -> None:
        command = _without_rejected(_as_command(args))
        start(self, command, *others, **options)
        if isinstance(command, list) and command[0] == "vllm":
            _servers.append(self)

    subprocess.Popen.__init__ = start_command  # type: ignore[method-assign]


def _as_command(args: Any) -> Any:
    """Changes a command that runs the API server's module to the command `vllm serve`."""
    named = [module for module in _MODULES if isinstance(args, list) and module in args]
    if not named:
        return args
    words = args[args.index(named[0]) + 1 :]
    model = words.index("--model")
    return ["vllm", "serve", words[model + 1], *words[:model], *words[model + 2 :]]


def _without_rejected(args: Any) -> Any:
    """Removes the flags that the embedded engine rejects."""
    if _SERVER != "embedded" or not isinstance(args, list):
        return args
    left: list[Any] = []
    words = iter(args)
    for word in words:
        if word in _REJECTED:
            for _ in range(_REJECTED[word]):
                next(words)
        else:
            left.append(word)
    return left
