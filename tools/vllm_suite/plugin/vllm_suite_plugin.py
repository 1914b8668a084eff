"""A pytest plugin for vLLM's environment. It chooses the tests that are relevant for this program.

Tests start servers with the command `vllm` on PATH. The results of plain vLLM are kept in vllm-0.32-cpu.json.
This program is tested with the tests that plain vLLM passes. Files that start no server are left out. Tests
that not_applicable.yaml lists are left out, too, except its known failures, which are expected to fail.
"""

import fnmatch
import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

_LISTS = Path(os.environ["VLLM_SUITE_LISTS"])
"""The folder of vllm-0.32-cpu.json and not_applicable.yaml."""
_IS_OURS = os.environ["VLLM_SUITE_SERVER"] == "ours"
_VLLM_RESULTS = _LISTS / "vllm-0.32-cpu.json"
_ENTRYPOINTS = "tests/entrypoints/"
_OLD_MODULE = "vllm.entrypoints.openai.api_server"
"""The module that some tests run instead of the command `vllm serve`."""
_SERVER_WORDS = ("Remote", '"vllm"', _OLD_MODULE, "schemathesis")
"""A file starts servers only if it, or a conftest.py in a folder above, contains one of these texts."""
_outcomes: dict[str, str] = {}
"""Test -> `passed` or `failed`."""


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
    passed = {test for test, outcome in _read_vllm_results().items() if outcome == "passed"}
    chosen = [item for item in items if _reason("not_applicable", item.nodeid) is None]
    if _IS_OURS:
        chosen = [item for item in chosen if item.nodeid in passed]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in chosen if _IS_OURS else ():
        if why := _reason("known_failures", item.nodeid):
            item.add_marker(pytest.mark.xfail(reason=why, strict=False))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Records the outcome of a test. If a fixture fails, the test has failed."""
    if report.when == "call" or report.failed:
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    """Saves the results of plain vLLM."""
    if not _IS_OURS:
        new = {test: outcome for test, outcome in _outcomes.items() if outcome != "skipped"}
        kept = dict(sorted((_read_vllm_results() | new).items()))
        _VLLM_RESULTS.write_text(json.dumps(kept, indent=0) + "\n")


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


def _read_vllm_results() -> dict[str, str]:
    results: dict[str, str] = json.loads(_VLLM_RESULTS.read_text()) if _VLLM_RESULTS.exists() else {}
    return results


def _prepare_servers() -> None:
    """Patches the tests' servers, so that they use local models and our command, and ignore GPU memory."""
    from tests.utils import RemoteVLLMServer

    RemoteVLLMServer._pre_download_model = lambda self, model, args: None
    RemoteVLLMServer._get_gpu_memory_used = lambda self: None
    start = subprocess.Popen.__init__

    def start_command(self: Any, args: Any, *others: Any, **options: Any) -> None:
        start(self, _as_command(args), *others, **options)

    subprocess.Popen.__init__ = start_command  # type: ignore[method-assign]


def _as_command(args: Any) -> Any:
    """Changes a command that runs the API server's module to the command `vllm serve`."""
    if not isinstance(args, list) or _OLD_MODULE not in args:
        return args
    words = args[args.index(_OLD_MODULE) + 1 :]
    model = words.index("--model")
    return ["vllm", "serve", words[model + 1], *words[:model], *words[model + 2 :]]
