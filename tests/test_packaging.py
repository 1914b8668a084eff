"""The wheel is complete, and works with only the base dependencies and beside modules with our names."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from startup.embedded.installed import MODULES
from tests.e2e.server_process import ServerProcess
from tests.router.router_process import foreign
from tests.support.ports import free_port
from tests.support.program import Server
from tools.install import LOCK, without_hashes

ROOT = Path(__file__).parents[1]
_NAMES = ("server", "startup", "router", "envs")
_INSIDE = ("base", "envs", "router", "server", "startup")
_SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "vllm_cli", *_INSIDE)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


class BaseEnvironment:
    """A virtual environment with the unpacked wheel, and with links to the base dependencies."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
        self.python = folder / "bin" / "python"
        self.site_packages = site_packages = Path(
            sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        )
        for path in _top_level_paths(_closure(_project()["dependencies"])):
            (site_packages / path.name).symlink_to(path)
        with zipfile.ZipFile(wheel) as files:
            files.extractall(site_packages)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `vllm-cli` with these arguments."""
        command = [self.python, "-P", "-m", "vllm_cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)


def _project() -> dict:
    """The project in pyproject.toml. The installed metadata may be older."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Name -> distribution, for all installed distributions that these requirements need."""
    found: dict[str, Distribution] = {}
    waiting, seen = [*requirements], set[str]()
    while waiting:
        requirement = Requirement(argument := waiting.pop())
        try:
            found[canonicalize_name(requirement.name)] = one = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        if argument not in seen:
            seen.add(argument)
            extras = ["", *requirement.extras]
            waiting += [
                text
                for text, marker in ((text, Requirement(text).marker) for text in one.requires or ())
                if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
            ]
    return found


def _top_level_paths(distributions: dict[str, Distribution]) -> Iterator[Path]:
    for found in distributions.values():
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
        yield from (Path(str(found.locate_file(top))) for top in tops)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("sources")
    for name in _SOURCES:
        source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder / "dist", folder],
        check=True,
        timeout=200,
    )
    [built] = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> BaseEnvironment:
    return BaseEnvironment(tmp_path_factory.mktemp("base"), wheel)


@pytest.mark.thorough
def test_the_wheel_has_one_name_and_every_file_of_the_packages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"vllm_cli"}
    files = {
        path.relative_to(ROOT).as_posix()
        for top in ("vllm_cli", *_INSIDE)
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".md")
    }
    inside = {name if name.startswith("vllm_cli/") else f"vllm_cli/packages/{name}" for name in files}
    assert {name for name in names if ".dist-info/" not in name} == inside


def _pins_for(python: str) -> dict[str, Requirement]:
    """Name -> pinned version, on Linux with this Python."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    pins = [Requirement(line) for line in without_hashes().splitlines() if not line.startswith("#")]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    by_name = {canonicalize_name(pin.name): pin for pin in chosen}
    assert len(by_name) == len(chosen)
    return by_name


def _all_requirements() -> list[str]:
    project = _project()
    return [
        *project["dependencies"],
        *(argument for arguments in project["optional-dependencies"].values() for argument in arguments),
    ]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_of_the_project_is_pinned_to_a_version_that_it_allows(python):
    pins = _pins_for(python)
    for requirement in map(Requirement, _all_requirements()):
        [version] = pins[canonicalize_name(requirement.name)].specifier
        assert version.operator == "=="
        assert requirement.specifier.contains(version.version), requirement


@pytest.mark.thorough
def test_all_that_is_installed_for_the_project_is_pinned():
    """If a package is missing in constraints.txt, pip chooses its version. `make lock` adds the package."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert set(_closure(_all_requirements())) - set(_pins_for(python)) == set()


def test_every_pinned_package_has_hashes():
    """Both of a package whose version depends on the platform."""
    packages = re.findall(r"^\S+==.*((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?$)*)", LOCK.read_text(), re.MULTILINE)
    assert len(packages) > 150
    assert all(packages)


def test_the_constraints_name_no_place():
    text = LOCK.read_text()
    assert [line for line in text.splitlines() if line.startswith("-") or "/" in line or "@" in line] == []


def test_the_classifiers_name_the_tested_pythons():
    named = [argument.rpartition(" ")[2] for argument in _project()["classifiers"] if ":: 3." in argument]
    assert tuple(named) == PYTHONS


def test_the_check_for_the_embedded_engine_covers_the_extra():
    project = _project()
    base, extra = (
        {Requirement(argument).name for argument in arguments}
        for arguments in (project["dependencies"], project["optional-dependencies"]["embedded"])
    )
    assert {name.replace("-", "_") for name in extra - base - {"tiktoken"}} == set(MODULES)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "arguments", [[], ["--engine", "embedded"], ["--preflight-only"]], ids=["auto", "named", "preflight"]
)
def test_without_the_extra_serve_names_it_in_one_line(arguments, base):
    done = base.run("serve", "some/model", *arguments)
    assert (done.returncode, done.stdout) == (3, "")
    line, code = done.stderr.splitlines()
    assert line.startswith("Error: the embedded engine is not installed (torch, ")
    assert "pip install '.[embedded]'" in line
    assert code.startswith("Code: VC-")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["doctor", "--env"], 0),
        (["caches"], 0),
        (["bench", "startup", "--help"], 0),
        (["chat", "--quick", "hi", "--url", "http://127.0.0.1:9/v1"], 1),
        (["stop", "9"], 1),
        (["wait", "--port", "9", "--timeout", "0.1"], 4),
        (["prefetch", "some/model"], 3),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_without_the_extra_other_commands_work(arguments, exit_code, base):
    done = base.run(*arguments)
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_another_distribution_with_a_package_of_our_name_is_reported_in_one_line(tmp_path, wheel):
    environment = BaseEnvironment(tmp_path, wheel)
    (environment.site_packages / "vllm_cli-0.2.5.dist-info").mkdir()
    done = environment.run("--version")
    assert done.returncode == 0
    [line] = done.stderr.splitlines()
    assert line.startswith("Warning: the unrelated distribution vllm-cli 0.2.5 has installed a package vllm_cli")


_NEEDS_MORE = {
    "startup.files.download.hub_answers": {"huggingface_hub"},
    "startup.files.download.hub_client": {"huggingface_hub"},
    "startup.kernels.compiling": {"triton"},  # beside vLLM, which brings Triton
    "startup.kernels.kernel": {"triton"},
    "startup.vllm_arguments.json_shape": {"pydantic_core"},  # reads vLLM's schemas, so it runs beside vLLM
}
"""Module of the base -> packages of extras, without which its command names the extra."""
_NOT_BASE = ("startup.embedded.", "startup.vllm.", "server.run")
"""Modules that run only beside the embedded engine or vLLM."""


@pytest.mark.thorough
def test_nothing_that_a_base_installation_reaches_imports_an_extra():
    """Follows all imports, also those within functions, from the commands and the router."""
    modules = {_module_of(path): path for top in ("vllm_cli", *_INSIDE) for path in (ROOT / top).rglob("*.py")}
    imported = {name: _imports_of(path) for name, path in modules.items() if not name.startswith(_NOT_BASE)}
    waiting = [name for name in imported if name.startswith(("vllm_cli", "router", "base", "envs"))]
    reached = set[str]()
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += imported[name] & imported.keys()
    assert {"startup.session.preflight.all_checks", "server.terms.limits"} <= reached
    allowed = {path.name.removesuffix(".py") for path in _top_level_paths(_closure(_project()["dependencies"]))}
    allowed |= sys.stdlib_module_names | {"vllm_cli", *_INSIDE}
    needed = {name: {each.partition(".")[0] for each in imported[name]} - allowed for name in reached}
    assert {name: packages for name, packages in needed.items() if packages} == _NEEDS_MORE


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports_of(path: Path) -> set[str]:
    """The modules that the file imports, unless only for types. `from a import b` counts as `a` and `a.b`."""
    tree, found = ast.parse(path.read_text()), set[str]()
    nodes = list(ast.walk(tree))
    typing = (node for node in nodes if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ignored = {id(each) for node in typing for each in ast.walk(node)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in ignored:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import) and id(node) not in ignored:
            found |= {each.name for each in node.names}
    return found


class _BaseRouter(Server):
    """A router of one command that runs in a base installation."""

    def __init__(self, base: BaseEnvironment, folder: Path) -> None:
        (folder / "models.yaml").write_text(json.dumps({"models": {"a": foreign()}}))
        self.port = free_port()
        address = ("--host", "127.0.0.1", "--port", self.port, "--models", folder / "models.yaml")
        policy = ("--allowed-origins", '["https://a"]', "--allowed-headers", '["X-Own"]', "--allow-credentials")
        command = [base.python, "-P", "-m", "vllm_cli", "serve", *address, *policy, "--log-format", "json"]
        super().__init__(command, os.environ, is_awaited=True)


@pytest.mark.thorough
def test_without_the_extra_a_router_of_commands_has_cors(base, tmp_path):
    with _BaseRouter(base, tmp_path) as server:
        asked = {"Origin": "https://a", "Access-Control-Request-Method": "POST"}
        preflight = Request(f"{server.url}/v1/chat/completions", headers=asked, method="OPTIONS")
        with urlopen(preflight, timeout=60) as answer:
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://a")
        assert server.ask("/v1/completions", {"model": "a", "prompt": "Once"}).status == 200
        server.terminate()


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A folder of modules with our packages' names. Each module writes a file when it is imported."""
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
        [*command, "serve", "--help"], env={"PYTHONPATH": "."}, cwd=decoys, capture_output=True, text=True, timeout=200
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


_USERS_FILES = {
    "server/__init__.py": "def check(): return 'check of the package'\nfrom server.auth import check as same\n",
    "server/auth/__init__.py": "from .deep import check\n",
    "server/auth/deep.py": "def check(): return 'deep check'\n",
    "startup.py": "raise RuntimeError('nobody asks for its attributes')\n",
    "base.py": "import pickle\nclass Own: pass\nassert pickle.loads(pickle.dumps(Own)) is Own\nconfig = 1\n",
    "envs/more.py": "from envs.registry import env as ours\n",
}
_ASKED = """
import vllm_cli.own_packages, importlib, sys
sys.path.insert(0, sys.argv[1])
import startup.settings.config, server.terms.config, server, base, base.errors, envs.registry
assert importlib.import_module("server").check() == "check of the package"
assert importlib.import_module("server.auth").check() == server.same() == "deep check"
import server.auth.deep, envs.more
assert envs.more.ours is envs.registry.env
assert base.Own.__module__ == "base" and base.config == 1 and base.errors.__file__.endswith("base/errors.py")
from server.terms import limits
assert not limits.__file__.startswith(sys.argv[1])
for missing in ("server.nothing", "server.auth.nothing", "startup.nothing"):
    try:
        importlib.import_module(missing)
    except ModuleNotFoundError as err:
        assert err.name == missing
    else:
        raise AssertionError(missing)
assert not hasattr(server, "nothing") and not hasattr(server, "__nothing__") and not hasattr(envs, "nothing")
print(server.__file__)
"""


@pytest.mark.parametrize("layout", ["checkout", pytest.param("wheel", marks=pytest.mark.thorough)])
def test_what_our_packages_lack_is_the_users(layout, tmp_path, request):
    for name, text in _USERS_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    python = sys.executable if layout == "checkout" else request.getfixturevalue("base").python
    done = subprocess.run(
        [python, "-c", _ASKED, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    expected = ROOT if layout == "checkout" else request.getfixturevalue("base").site_packages / "vllm_cli/packages"
    assert done.stdout.strip() == str(expected / "server" / "__init__.py")
