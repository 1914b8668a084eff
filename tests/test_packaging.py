"""The wheel's contents, and what works with the base dependencies alone, or beside modules of our names."""

import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

from startup.engine.installed import MODULES
from tests.e2e.server_process import ServerProcess
from vllm_cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
_EXTRA = "pip install '.[embedded]'"
_NAMES = ("server", "startup", "envs")


class BaseEnvironment:
    """A virtual environment whose site-packages links to the base dependencies and to this checkout."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
        self.python = folder / "bin" / "python"
        self.site_packages = site_packages = Path(
            sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        )
        for path in _top_level_paths(_closure(_base_requirements())):
            (site_packages / path.name).symlink_to(path)
        for name in ("vllm_cli", "startup", "server", "base", "envs"):
            (site_packages / name).symlink_to(ROOT / name)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`vllm-cli` with these words."""
        command = [self.python, "-P", "-m", "vllm_cli", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)


def _base_requirements() -> list[str]:
    """As pyproject.toml has them now; the installed metadata may be older."""
    requirements: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return requirements


def _closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that these requirements bring, by name; extras of dependencies are left out."""
    found: dict[str, Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = distribution(requirement.name)
        waiting += found[name].requires or ()
    return found


def _top_level_paths(distributions: dict[str, Distribution]) -> Iterator[Path]:
    for found in distributions.values():
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
        yield from (Path(str(found.locate_file(top))) for top in tops)


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
    assert {name.replace("-", "_") for name in extra - base - {"oss-harmony", "tiktoken"}} == set(MODULES)


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
        (["caches"], 0),
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


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A folder with modules of our names, each of which leaves a file when it is imported."""
    folder = tmp_path / "decoys"
    folder.mkdir()
    for name in _NAMES:
        (folder / f"{name}.py").write_text(f"open({str(folder / name)!r}, 'w').close()\nraise SystemExit('{name}')\n")
    return folder


def _imported(folder: Path) -> list[str]:
    return [name for name in _NAMES if (folder / name).exists()]


@pytest.mark.parametrize(
    "command",
    [[str(Path(sys.executable).with_name("vllm-cli"))], [sys.executable, "-m", "vllm_cli"]],
    ids=["script", "module"],
)
def test_the_command_line_imports_none_of_a_users_modules(command, decoys):
    done = subprocess.run(
        [*command, "serve", "--help"],
        env={"PYTHONPATH": "."},
        cwd=decoys,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, _imported(decoys)) == (0, []), done.stderr
    assert "Serve MODEL" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_the_processes_of_a_server_import_none_of_a_users_modules(method, decoys, tiny_llama, monkeypatch):
    monkeypatch.chdir(decoys)
    environment = {"PYTHONPATH": ".", "VLLM_WORKER_MULTIPROC_METHOD": method}
    with ServerProcess([str(tiny_llama)], environment=environment):
        assert _imported(decoys) == []
