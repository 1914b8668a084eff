"""`make size` fails above its ceiling, which a commit may raise if its message says why."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tools import size

_FILES = {
    "envs/a.py": '"""A docstring."""\n\n# A comment.\nX = 1\nY = "two"\n',
    "startup/port/b.py": "def f():\n    '''Another.'''\n    return (\n        1\n    )\n",
    "tools/c.py": "Z = 3\n",
    "tests/d.py": "V = 4\n",
    "docs/e.md": "five words\nin two lines",
    "base/f.css": "6\n7\n8\n",
    "router/g.yaml": "two: words\n",
}
_TOKENS = 6 + 9
"""Those of `envs` and `startup`."""
_NAMES = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `make size` in a repository with one file of each kind. A message commits the ceiling first."""
    for path, text in {**_FILES, "tools/size.txt": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", *_FILES)
    (tmp_path / "envs" / "untracked.py").write_text("W = 9\n")
    ceiling = tmp_path / "tools" / "size.txt"
    monkeypatch.setattr(size, "CEILING", ceiling)

    def run(text: str, *, message: str = "") -> Result:
        ceiling.write_text(text)
        if message:
            _git(tmp_path, "add", "tools")
            _git(tmp_path, "commit", "-q", "-m", message)
        return CliRunner().invoke(size.main)

    return run


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, env={**os.environ, **dict.fromkeys(_NAMES, "a@b")})


def test_tokens_are_counted_without_docstrings_comments_and_layout(run):
    done = run(f"tokens {_TOKENS}\n")
    assert done.exit_code == 0, done.output
    assert f"product: {_TOKENS} tokens of {_TOKENS}, 2.50 a line" in done.output


def test_one_token_above_the_ceiling_fails(run):
    done = run(f"tokens {_TOKENS - 1}\n")
    assert done.exit_code == 1
    assert f"The product has {_TOKENS} tokens, at most {_TOKENS - 1}." in done.output


def test_tools_tests_docs_and_data_are_printed_and_have_no_limit(run):
    output = run(f"tokens {_TOKENS}\n").output
    lines = "tools: 3 tokens", "tests: 3 tokens", "words of docs: 5", "words of data: 2", "lines in other languages: 3"
    for line in lines:
        assert line in output


def test_a_commit_that_raises_the_ceiling_says_why(run):
    run("python 3\nother-languages 9\n", message="limits of another form")
    assert run(f"tokens {_TOKENS}\n", message="first").exit_code == 0
    assert run("tokens 99\n", message="raised\n\nThe kernels are compiled beside the imports now.").exit_code == 0
    done = run("tokens 100\n", message="raised without a reason")
    assert done.exit_code == 1
    assert "raises the ceiling from 99 to 100, and its message does not say why." in done.output


def test_a_ceiling_of_another_form_is_an_error(run):
    done = run("python 3\n")
    assert done.exit_code == 1
    assert "must be one line of the form: tokens 460000" in done.output
