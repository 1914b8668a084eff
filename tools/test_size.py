"""`make size` fails above the table, only lowers the table, and requires a reason for a larger sum."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tools import size

_SOURCE = '''"""Three lines of this file
are code."""

# No code.
A = """
text"""
def b(): ...
'''
_NAMES = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `make size` in a repository with two Python files in `envs` and one Markdown file in `docs`."""
    for path, text in {"envs/a.py": _SOURCE, "envs/b/c.py": "3\n", "docs/d.md": "4\n5\n", "docs/e.svg": "6\n"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "envs" / "untracked.py").write_text("")
    table = tmp_path / "tools" / "size.txt"
    table.parent.mkdir()
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "envs/a.py", "envs/b", "docs")
    monkeypatch.setattr(size, "TABLE", table)

    def run(allowed: str, *words: str, message: str = "") -> tuple[Result, str]:
        table.write_text(f"room lines code files\n{allowed}")
        if message:
            _git(tmp_path, "add", "tools", "CHANGELOG.md") if message == "release" else _git(tmp_path, "add", "tools")
            _git(tmp_path, "commit", "-q", "-m", message)
        return CliRunner().invoke(size.main, words), table.read_text()

    return run


def _git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=folder, check=True, env={**os.environ, **dict.fromkeys(_NAMES, "a@b")})


@pytest.mark.parametrize(("allowed", "code"), [("8 4 2", 0), ("7 4 2", 1), ("8 3 2", 1), ("8 4 1", 1), ("9 9 9", 0)])
def test_more_lines_code_or_files_than_in_the_table_fail(run, allowed, code):
    done, _ = run(f"envs {allowed}\ndocs 2 0 1\n")
    assert done.exit_code == code, done.output
    assert ("too large: envs" in done.output) == bool(code)


def test_the_table_is_only_lowered(run):
    done, written = run("envs 9 9 1\ndocs 9 9 9\n", "--lower")
    assert done.exit_code == 1
    assert size.read_table(written) == {"envs": (8, 4, 1), "docs": (2, 0, 1)}


def test_a_larger_sum_needs_its_reason_until_the_next_release(run, tmp_path):
    run("envs 8 4 2\nbase 9 9 9\n", message="first")
    done, _ = run("envs 11 4 2\nbase 6 9 9\n", message="moved")
    assert done.exit_code == 0, done.output
    reason = "Grows: envs +3, because of a test"
    done, _ = run("envs 14 4 2\nbase 6 9 9\n", message=f"more\n\n{reason}")
    assert (done.exit_code, reason in done.output) == (0, True)
    done, _ = run("envs 16 4 2\nbase 6 9 9\n", message="even more\n\nGrows: envs +1, because of a test")
    assert (done.exit_code, "raises the sum by 2 lines, and its message names 1" in done.output) == (1, True)
    (tmp_path / "CHANGELOG.md").write_text("## [1.0.0]\n")
    done, _ = run("envs 16 4 2\nbase 6 9 9\ndocs 2 0 1\n", message="release")
    assert (done.exit_code, "Grows" in done.output) == (0, False)
