"""The table of hooks is whole, and agrees with the code that places them."""

import ast
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from startup.hooks.hook import Name
from startup.hooks.sources import Sources, check_hooks, installed_package
from startup.vllm.fork import forkserver
from startup.vllm.fork.forkserver import MULTIPROCESSING
from startup.vllm.launch.hooks import HOOKS, names_that_cannot_be_left_out

ROOT = Path(__file__).parents[3]


def test_names_are_unique_and_every_hook_is_described() -> None:
    assert [name for name, number in Counter(hook.name for hook in HOOKS).items() if number > 1] == []
    assert [hook.name for hook in HOOKS if not (hook.does and hook.without and hook.needs)] == []


def test_the_installed_libraries_fit() -> None:
    """Of those that this environment has; vLLM is not among them."""
    others = [
        hook for hook in HOOKS if all(isinstance(n, Name) and not n.module.startswith("vllm") for n in hook.needs)
    ]
    findings = check_hooks(others, Sources(installed_package), (0, 32))
    assert len(findings) > 5
    assert [finding for finding in findings if finding.state == "does not fit"] == []


def test_a_variable_leaves_hooks_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLI_LEAVE_OUT", "spans, late imports")
    assert [hook.name for hook in HOOKS if not hook.applies] == ["late imports", "spans"]
    assert names_that_cannot_be_left_out({"spans", "port", "early", "import file"}) == ["early", "port"]


def test_the_internals_of_multiprocessing_that_the_forkserver_uses_are_declared() -> None:
    declared = {part for need in MULTIPROCESSING.needs if isinstance(need, Name) for part in need.path.split(".")}
    tree = ast.parse(Path(forkserver.__file__).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("context", "forkserver", "popen_forkserver", "popen_spawn_posix", "server", "util")
    }
    assert used - declared == set()


def test_every_declared_hook_is_in_the_table() -> None:
    texts = [path.read_text() for path in (ROOT / "startup").rglob("*.py")]
    assert sum(text.count(": Final = Hook(") for text in texts) == len(HOOKS)


def test_hooks_are_declared_without_importing_what_they_are_about() -> None:
    code = (
        "import startup.vllm.launch.hooks, sys; print(*{'torch', 'transformers', 'vllm', 'uvicorn'} & {*sys.modules})"
    )
    assert find_spec("torch") is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
