"""The first change that CONTRIBUTING.md teaches works as the page tells it, on a copy of this repository."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[1]
_CAUSES: Final = Path("startup/reports/causes/known_causes.yaml")
_LOGS: Final = Path("tests/startup/reports/causes/logs.yaml")
_ENTRY: Final = """\
  - name: my-cause
    source: vllm#12345
    title: the example of CONTRIBUTING.md
    texts: ["{text}"]
    advice: Make room.
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with the files that git tracks here, in their present state."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    _run(tmp_path, "git", "init", "-q")
    _run(tmp_path, "git", "add", "-A")
    return tmp_path


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


def _test(folder: Path, *words: str) -> tuple[int, str]:
    """Runs tests of the copy. Returns pytest's exit code and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_the_first_change_fails_then_passes_and_is_not_too_large(copy):
    page = (ROOT / "CONTRIBUTING.md").read_text()
    log = textwrap.dedent(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])  # type: ignore[index]
    (entry,) = yaml.safe_load(log)
    tests = str(_LOGS.with_name("test_first_cause.py"))
    with (copy / _LOGS).open("a") as file:
        file.write(f"\n{log}")
    code, output = _test(copy, tests, "-k", "shows_its_cause")
    assert (code, "my-cause" in output) == (1, True), output
    causes = (copy / _CAUSES).read_text()
    cause = _ENTRY.format(text=entry["log"].strip().rpartition(": ")[2])
    (copy / _CAUSES).write_text(causes.replace("causes:\n", f"causes:\n\n{cause}", 1))
    changes = (copy / "CHANGELOG.md").read_text()
    (copy / "CHANGELOG.md").write_text(changes.replace("### Fixed\n", "### Fixed\n- `explain` knows my cause.\n", 1))
    code, output = _test(copy, str(_LOGS.parent), "tests/test_docs.py", "-m", "not slow and not thorough")
    assert code == 0, output
    _run(copy, "git", "add", "-A")
    _run(copy, sys.executable, "-m", "tools.size")
