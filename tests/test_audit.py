"""The audit of dependencies with a stand-in for pip-audit: its report and its exit code."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PYTHON = """#!/bin/sh
case "$*" in
  *freeze*) printf 'torch==2.13.0+cpu\\nclick==8.5.1\\nlocal @ file:///x\\n-e y\\n';;
  -m*) echo "$*" >> log; exit 1;;
  *) exec python3 "$@";;
esac
"""
TOOL = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in --requirement) cp "$2" asked;; --output) report=$2;; esac
  shift
done
[ -e answer ] && cp answer "$report"
exit {exit_code}
"""
FAULTS = {
    "dependencies": [
        {"name": "click", "version": "8.5.1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["8.5.2"]}]},
        {"name": "torch", "version": "2.13.0", "vulns": []},
        {"name": "other", "skip_reason": "unknown"},
    ]
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the script and an environment whose interpreter only lists what is installed."""
    (tmp_path / ".ci").mkdir()
    _write(tmp_path / ".ci" / "audit", (ROOT / ".ci" / "audit").read_text())
    _write(tmp_path / ".venv" / "bin" / "python", PYTHON)
    return tmp_path


def audit(clone: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([clone / ".ci" / "audit"], capture_output=True, text=True, timeout=120, cwd=os.sep)


def test_installed_packages_are_audited_without_local_versions(clone: Path) -> None:
    _write(clone / ".venv" / "audit" / "bin" / "pip-audit", TOOL.format(exit_code=0))
    (clone / "answer").write_text(json.dumps({"dependencies": [FAULTS["dependencies"][1]]}))
    done = audit(clone)
    assert (done.returncode, done.stdout) == (0, "audit: no known vulnerability in 1 packages\n")
    assert (clone / "asked").read_text() == "torch==2.13.0\nclick==8.5.1\n"


def test_packages_unknown_to_the_database_do_not_count_as_free_of_vulnerabilities(clone: Path) -> None:
    """pip-audit itself prints `No known vulnerabilities found` for them and exits with 0."""
    _write(clone / ".venv" / "audit" / "bin" / "pip-audit", TOOL.format(exit_code=0))
    unknown = [{"name": name, "skip_reason": "Dependency not found"} for name in ("click", "torch")]
    (clone / "answer").write_text(json.dumps({"dependencies": unknown}))
    done = audit(clone)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "audit: NOTHING WAS CHECKED: the database has none of 2 packages\n"
    (clone / "answer").write_text(json.dumps({"dependencies": [*unknown, {"name": "x", "version": "1", "vulns": []}]}))
    done = audit(clone)
    assert (done.returncode, done.stdout) == (0, "audit: no known vulnerability in 1 packages\n")
    assert done.stderr == "audit: not checked, they are not in the database: click, torch\n"


def test_a_known_vulnerability_fails_and_is_named(clone: Path) -> None:
    _write(clone / ".venv" / "audit" / "bin" / "pip-audit", TOOL.format(exit_code=1))
    (clone / "answer").write_text(json.dumps(FAULTS))
    done = audit(clone)
    assert (done.returncode, done.stdout) == (1, "audit: click 8.5.1: PYSEC-1, fixed in 8.5.2\n")


def test_an_unreachable_database_is_reported_and_does_not_fail(clone: Path) -> None:
    _write(clone / ".venv" / "audit" / "bin" / "pip-audit", TOOL.format(exit_code=1))
    done = audit(clone)
    assert done.returncode == 0
    assert "NOTHING WAS CHECKED: the database of vulnerabilities cannot be reached" in done.stderr


def test_a_tool_that_cannot_be_installed_is_reported_and_does_not_fail(clone: Path) -> None:
    done = audit(clone)
    assert done.returncode == 0
    assert "NOTHING WAS CHECKED: pip-audit cannot be installed" in done.stderr


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
