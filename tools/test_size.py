"""`make size` fails above its limits, which a commit may raise if its message says why."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tools import size

_FILES = {
    "envs/a.py": '"""A docstring."""\n\n# A comment.\nX = 1\nY = "two"\n',
    "startup/port/b.py": "def f():\n    '''Another.'''\n    return (\n        1\n    )\n",
    "startup/vllm/launch/start.py": (
        "from envs.a import X, Y\n\ndef f():\n    import envs.a\n    from startup.port import b\n"
    ),
    "startup/port/__init__.py": "",
    "startup/port/unused.py": "U = 5\n",
    "router/types.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from startup.port.unused import U\n"
        "from envs.a import X\n"
    ),
    "tools/c.py": "Z = 3\n",
    "tests/d.py": "V = 4\n",
    "docs/e.md": "five words\nin two lines",
    "base/f.css": "6\n7\n8\n",
    "router/g.yaml": "two: words\n",
}
_CLOSURE = 6 + 9 + 23
"""Tokens of `envs.a`, `startup.port.b` and the start, but not of `unused` and `types`."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `make size` in a repository with one file of each kind. A message commits the limits first."""
    for path, text in {**_FILES, "tools/size.toml": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", *_FILES)
    (tmp_path / "envs" / "untracked.py").write_text("W = 9\n")
    limits = tmp_path / "tools" / "size.toml"
    monkeypatch.setattr(size, "LIMITS", limits)

    def run(closure: int, *faces: str, message: str = "", text: str | None = None) -> Result:
        lines = (f"closure = {closure}", "[faces]", *faces)
        limits.write_text("\n".join(lines) if text is None else text)
        if message:
            _git(tmp_path, "add", "tools")
            _git(tmp_path, "commit", "-q", "-m", message)
        return CliRunner().invoke(size.main)

    return run


_NAMES = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, env={**os.environ, **dict.fromkeys(_NAMES, "a@b")})


def test_the_closure_has_imports_in_functions_but_not_those_for_type_checkers(run):
    done = run(_CLOSURE)
    assert done.exit_code == 0, done.output
    assert f"closure of a start of vLLM: {_CLOSURE} tokens of {_CLOSURE}, 4 modules" in done.output


def test_one_token_above_the_limit_of_the_closure_fails(run):
    done = run(_CLOSURE - 1)
    assert done.exit_code == 1
    assert f"A start of vLLM imports {_CLOSURE} tokens, at most {_CLOSURE - 1}." in done.output


def test_one_name_above_the_limit_of_a_face_fails(run):
    """Others import two names of `envs.a`, and the module itself."""
    assert run(_CLOSURE, "envs = 3").exit_code == 0
    done = run(_CLOSURE, "envs = 2")
    assert done.exit_code == 1
    assert "Other rooms import 3 names of envs, at most 2." in done.output


def test_a_face_without_a_limit_of_its_own_has_the_common_one(run, monkeypatch):
    monkeypatch.setattr(size, "_LARGEST_FACE", 2)
    assert "Other rooms import 3 names of envs, at most 2." in run(_CLOSURE).output


def test_tools_tests_docs_and_data_are_printed_and_have_no_limit(run):
    output = run(_CLOSURE).output
    lines = "tools: 3 tokens", "tests: 3 tokens", "words of docs: 5", "words of data: 2", "lines in other languages: 3"
    for line in lines:
        assert line in output


@pytest.mark.parametrize(("closure", "face", "name"), [(100, 3, "closure"), (99, 4, "envs")])
def test_a_commit_that_raises_a_limit_says_why(run, closure, face, name):
    run(0, text="tokens 9", message="a limit of another form")
    assert run(_CLOSURE, "envs = 3", message="first").exit_code == 0
    assert run(99, "envs = 3", message="raised\n\nThe kernels are compiled beside the imports now.").exit_code == 0
    done = run(closure, f"envs = {face}", message="raised without a reason")
    assert done.exit_code == 1
    assert f"raises the limit of {name} from" in done.output


def test_limits_of_another_form_are_an_error(run):
    done = run(0, text="tokens 3")
    assert done.exit_code == 1
    assert "must have a number `closure` and a table `faces`" in done.output
