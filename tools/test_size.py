"""`make size` fails above the table, and lowers it only."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tools import size


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs it in a repository with 3 lines of Python in `envs` and 2 of Markdown in `docs`."""
    for path, text in {"envs/a.py": "1\n2\n", "envs/b/c.py": "3\n", "docs/d.md": "4\n5\n", "docs/e.svg": "6\n"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "envs" / "untracked.py").write_text("")
    for words in (["init", "-q"], ["add", "envs/a.py", "envs/b", "docs"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    table = tmp_path / "tools" / "size.txt"
    table.parent.mkdir()
    monkeypatch.setattr(size, "TABLE", table)

    def run(allowed: str, *words: str) -> tuple[Result, str]:
        table.write_text(allowed)
        return CliRunner().invoke(size.main, words), table.read_text()

    return run


@pytest.mark.parametrize(("allowed", "code"), [("3 2", 0), ("2 2", 1), ("3 1", 1), ("9 9", 0)])
def test_more_lines_or_files_than_in_the_table_fail(run, allowed, code):
    done, _ = run(f"package lines files\nenvs {allowed}\ndocs 2 1\n")
    assert done.exit_code == code
    assert ("too large: envs" in done.output) == bool(code)


def test_the_table_is_only_lowered(run):
    done, written = run("package lines files\nenvs 9 1\ndocs 9 9\n", "--lower")
    assert done.exit_code == 1
    assert size.read_table(written) == {"envs": (3, 1), "docs": (2, 1)}
