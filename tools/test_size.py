"""`make size` fails above its limits, and no commit may raise a limit."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tools import size

_FILES = {
    "envs/a.py": "1\n2\n",
    "startup/port/b.py": "3\n",
    "tests/c.py": "4\n",
    "docs/d.md": "five words\nin two lines",
    "base/e.css": "6\n7\n8\n",
}
_NAMES = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
_REACHED = "python 3\nother-languages 3\nlines-of-tests 1\nwords-of-docs 5\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `make size` in a repository with one file of each kind. A message commits the limits first."""
    for path, text in {**_FILES, "tools/size.txt": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "envs", "startup", "tests", "docs", "base")
    (tmp_path / "envs" / "untracked.py").write_text("9\n")
    limits = tmp_path / "tools" / "size.txt"
    monkeypatch.setattr(size, "LIMITS", limits)

    def run(text: str, *words: str, message: str = "") -> tuple[Result, str]:
        limits.write_text(text)
        if message:
            _git(tmp_path, "add", "tools")
            _git(tmp_path, "commit", "-q", "-m", message)
        return CliRunner().invoke(size.main, words), limits.read_text()

    return run


def _git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=folder, check=True, env={**os.environ, **dict.fromkeys(_NAMES, "a@b")})


def test_what_is_within_the_limits_passes(run):
    done, _ = run(_REACHED)
    assert done.exit_code == 0, done.output
    assert "startup/port  1" in done.output


@pytest.mark.parametrize("kind", ["python", "other-languages", "lines-of-tests", "words-of-docs"])
def test_each_kind_has_a_limit(run, kind):
    limits = size.read_limits(_REACHED)
    done, _ = run("".join(f"{name} {most - (name == kind)}\n" for name, most in limits.items()))
    assert done.exit_code == 1
    assert f"too large: {kind} has {limits[kind]}, at most {limits[kind] - 1}." in done.output


def test_limits_are_only_lowered(run):
    done, written = run("python 9\nother-languages 9\nlines-of-tests 0\nwords-of-docs 9\n", "--lower")
    assert done.exit_code == 1
    assert written == _REACHED.replace("lines-of-tests 1", "lines-of-tests 0")


def test_a_raised_limit_is_found_in_the_working_tree_and_in_each_commit(run):
    run("room lines code files\nenvs 3 3 3\n", message="a table of another form")
    assert run(_REACHED, message="first")[0].exit_code == 0
    raised = _REACHED.replace("python 3", "python 4")
    done, _ = run(raised)
    assert (done.exit_code, "The working tree raises the limit of python from 3 to 4." in done.output) == (1, True)
    run(raised, message="raised")
    done, _ = run(_REACHED, message="lowered again")
    assert (done.exit_code, "raises the limit of python from 3 to 4." in done.output) == (1, True)
