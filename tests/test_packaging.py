"""The wheel's contents, and what works with the base dependencies alone."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages

from startup.engine.installed import MODULES
from tests.base_environment import BaseEnvironment
from vllm_cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
_EXTRA = "pip install '.[embedded]'"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseEnvironment:
    return BaseEnvironment(tmp_path_factory.mktemp("base"))


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_holds_every_package_and_no_test():
    include = _project()["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("vllm_cli", "startup", "server", "base", "envs")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(find_packages(str(ROOT), include=include)) == folders


@pytest.mark.parametrize("extra", ["", "embedded", "dev"])
def test_every_dependency_of_the_project_is_pinned(extra):
    project = _project()["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {Requirement(word).name.lower() for word in wanted}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned


def test_the_check_for_the_embedded_engine_covers_the_extra():
    project = _project()["project"]
    base, extra = (
        {Requirement(word).name for word in words}
        for words in (project["dependencies"], project["optional-dependencies"]["embedded"])
    )
    assert {name.replace("-", "_") for name in extra - base - {"oss-harmony"}} == set(MODULES)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "words", [[], ["--engine", "embedded"], ["--preflight-only"]], ids=["auto", "named", "preflight"]
)
def test_without_the_extra_serve_names_it_in_one_line(words, base):
    done = base.run("serve", "some/model", *words)
    assert (done.returncode, done.stdout) == (3, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: the embedded engine is not installed (torch, ")
    assert _EXTRA in line


@pytest.mark.thorough
@pytest.mark.parametrize("command", [entry.name for entry in COMMANDS])
def test_without_the_extra_every_command_explains_itself(command, base):
    done = base.run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["env"], 0),
        (["collect-env"], 0),
        (["preload", "show"], 0),
        (["bench", "startup", "--help"], 0),
        (["chat", "--quick", "hi", "--url", "http://127.0.0.1:9/v1"], 1),
        (["stop", "9"], 1),
        (["wait", "--port", "9", "--timeout", "0.1"], 4),
        (["prefetch", "some/model"], 3),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_without_the_extra_other_commands_work(words, exit_code, base):
    done = base.run(*words)
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_another_distribution_with_a_package_of_our_name_is_reported_in_one_line(tmp_path):
    environment = BaseEnvironment(tmp_path)
    (environment.site_packages / "vllm_cli-0.2.5.dist-info").mkdir()
    done = environment.run("--version")
    assert done.returncode == 0
    [line] = done.stderr.splitlines()
    assert line.startswith("Warning: the unrelated distribution vllm-cli 0.2.5 has installed a package vllm_cli")
