"""The audit of dependencies with a stand-in for pip-audit: its report and its exit code."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

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
  case "$1" in
    --ignore-vuln=*) echo "$1" >> ignored;;
    --requirement) cp "$2" "asked-$(basename "$2")";;
    --output) report=$2;;
  esac
  shift
done
[ -e answer ] && cp answer "$report"
exit {exit_code}
"""
PROJECT = """
[project]
dependencies = ["click>=8.1", "pillow>=10"]
[project.optional-dependencies]
embedded = ["mistral-common[sentencepiece]>=1.11.6", "uvicorn>=0.35,<0.55", "pillow>=13.0.0"]
"""
FINE = {"name": "torch", "version": "2.13.0", "vulns": []}
FAULTS = [
    {"name": "click", "version": "8.5.1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["8.5.2"]}]},
    FINE,
    {"name": "other", "skip_reason": "unknown"},
]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the script and an environment whose interpreter only lists what is installed."""
    (tmp_path / ".ci").mkdir()
    _write(tmp_path / ".ci" / "audit", (ROOT / ".ci" / "audit").read_text())
    _write(tmp_path / ".venv" / "bin" / "python", PYTHON)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


FIXED = {"aiohttp": "3.14.4", "jinja2": "3.1.6", "pillow": "13.0.0", "starlette": "1.3.1"}
"""By package, the first version without a hole that a client's bytes reach."""
NO_FAULT = "".join(f"audit: no known vulnerability in 1 {kind} packages\n" for kind in ("installed", "lowest"))


def answer(clone: Path, exit_code: int, dependencies: list[dict[str, object]] | None = None) -> None:
    """What the tool exits with, and its report; None: it writes none."""
    _write(clone / ".venv" / "audit" / "bin" / "pip-audit", TOOL.format(exit_code=exit_code))
    if dependencies is not None:
        (clone / "answer").write_text(json.dumps({"dependencies": dependencies}))


def audit(clone: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([clone / ".ci" / "audit"], capture_output=True, text=True, timeout=120, cwd=os.sep)


def test_installed_packages_are_audited_without_local_versions(clone: Path) -> None:
    answer(clone, 0, [FINE])
    done = audit(clone)
    assert (done.returncode, done.stdout) == (0, NO_FAULT)
    assert (clone / "asked-installed").read_text() == "torch==2.13.0\nclick==8.5.1\n"


def test_the_lowest_versions_that_the_server_may_have_are_audited_too(clone: Path) -> None:
    answer(clone, 1, FAULTS)
    done = audit(clone)
    asked = (clone / "asked-lowest").read_text().split()
    assert asked == ["click==8.1", "pillow==13.0.0", "mistral-common==1.11.6", "uvicorn==0.35"]
    assert done.returncode == 1
    assert "audit: click 8.5.1, the lowest allowed version: PYSEC-1, fixed in 8.5.2\n" in done.stdout
    assert "--ignore-vuln=PYSEC-2026-2132" in (clone / "ignored").read_text()


def test_floors_have_no_hole_known_to_this_test() -> None:
    """The database cannot be reached everywhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = (*project["dependencies"], *project["optional-dependencies"]["embedded"])
    lowest = dict(re.match(r"([\w.-]+).*?>=([\w.]+)", word).groups() for word in words)  # type: ignore[union-attr]
    for name, fixed in FIXED.items():
        assert Version(lowest[name]) >= Version(fixed), name


def test_packages_unknown_to_the_database_do_not_count_as_free_of_vulnerabilities(clone: Path) -> None:
    """pip-audit itself prints `No known vulnerabilities found` for them and exits with 0."""
    unknown = [{"name": name, "skip_reason": "Dependency not found"} for name in ("click", "torch")]
    answer(clone, 0, unknown)
    done = audit(clone)
    assert (done.returncode, done.stdout) == (0, "")
    nothing = "audit: NOTHING WAS CHECKED: the database has none of 2 {} packages\n"
    assert done.stderr == nothing.format("installed") + nothing.format("lowest")
    answer(clone, 0, [*unknown, {"name": "x", "version": "1", "vulns": []}])
    done = audit(clone)
    assert (done.returncode, done.stdout) == (0, NO_FAULT)
    assert done.stderr == "audit: not checked, they are not in the database: click, torch\n" * 2


def test_a_known_vulnerability_fails_and_is_named(clone: Path) -> None:
    answer(clone, 1, FAULTS)
    done = audit(clone)
    assert done.returncode == 1
    assert done.stdout.startswith("audit: click 8.5.1: PYSEC-1, fixed in 8.5.2\n")


def test_an_unreachable_database_is_reported_and_does_not_fail(clone: Path) -> None:
    answer(clone, 1)
    done = audit(clone)
    assert done.returncode == 0
    problem = "for installed packages, the database of vulnerabilities cannot be reached"
    assert f"NOTHING WAS CHECKED: {problem}" in done.stderr


def test_a_database_that_becomes_unreachable_hides_no_vulnerability(clone: Path) -> None:
    answer(clone, 1, FAULTS)
    tool = clone / ".venv" / "audit" / "bin" / "pip-audit"
    tool.write_text(tool.read_text().replace('cp answer "$report"', 'mv answer "$report"'))
    assert audit(clone).returncode == 1


def test_a_requirement_without_a_lowest_version_is_named(clone: Path) -> None:
    answer(clone, 0)
    (clone / "pyproject.toml").write_text(PROJECT.replace("click>=8.1", "click"))
    done = audit(clone)
    assert (done.returncode, "audit: click in pyproject.toml has no lowest version" in done.stderr) == (1, True)


def test_a_tool_that_cannot_be_installed_is_reported_and_does_not_fail(clone: Path) -> None:
    done = audit(clone)
    assert done.returncode == 0
    assert "NOTHING WAS CHECKED: pip-audit cannot be installed" in done.stderr


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
