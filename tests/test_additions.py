"""Without the addition `vllm_cli/explain`, all else works as before, and says what the installation lacks."""

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from startup.logs.setup import PACKAGES
from tests.startup.vllm.fake_start import FakeStart, broken_environment, command, environment
from tests.support.folders import short_folder
from tests.support.ports import free_port

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
_MISSING = "this installation has no explain"
_CONTRACT = "[[tool.importlinter.contracts]]\n"


class Core:
    """A folder with the product without the addition, and an interpreter that finds no other product."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("explain", "__pycache__"))
        (folder / "vllm_cli" / "explain" / "__pycache__").mkdir(parents=True)  # what a removal with git leaves
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=120)
        self.python = folder / "venv" / "bin" / "python"
        base = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        # The libraries of this environment, but not this project, which is installed there as editable.
        (Path(sysconfig.get_path("purelib", vars=base)) / "all.pth").write_text(sysconfig.get_path("purelib"))

    def variables(self, given: dict[str, str]) -> dict[str, str]:
        """The variables of a start with the packages of this folder."""
        return {**given, "PYTHONPATH": f"{given['PYTHONPATH'].removesuffix(str(ROOT))}{self.folder}"}

    def run(self, arguments: list[str], variables: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Runs a command line of `vllm-cli`, which begins with an interpreter, with this one."""
        line = [self.python, *arguments[1:]]
        return subprocess.run(line, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)

    def start(self, folder: Path, given: dict[str, str]) -> FakeStart:
        """Starts the fake vLLM."""
        start = FakeStart(folder, env=self.variables(given), cwd=self.folder)
        start.command[0] = str(self.python)
        return start


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    return Core(tmp_path_factory.mktemp("core"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.mark.parametrize(
    ("crash", "cause"),
    [
        ("config:no weights", "CrashError: no weights"),
        ("config:SystemExit 1", "vLLM ended with exit code 1 and no message"),
        ("engine:cannot start", "Error: "),
        ("engine:SIGKILL", "Error: "),
    ],
)
def test_a_failed_start_ends_with_the_last_exception(crash, cause, core, folder):
    line = command("--host", "127.0.0.1", "--port", str(free_port()))
    done = core.run(line, core.variables(environment(folder, FAKE_VLLM_CRASH=crash)))
    assert done.returncode == 3, done.stderr
    first, second, third, code, log = done.stderr.splitlines()[-5:]
    assert re.fullmatch(r"Error: \w+ \(pid \d+\) failed.*\.", first)
    assert second.startswith("Cause: ")
    assert cause in second
    assert _MISSING in third
    assert (code, log[:5]) == ("Code: VC-UNKNOWN", "Log: ")


def test_a_start_works_and_a_signal_stops_it(core, folder):
    with core.start(folder, environment(folder)) as start:
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        assert start.terminate() == 0
        assert start.lines_with("WARNING", "Error") == []


def test_an_engine_that_dies_while_it_serves_ends_the_server_with_the_code_of_vllm(core, folder):
    with core.start(folder, environment(folder, FAKE_VLLM_CRASH="request:no such key")) as start:
        start.wait_ready()
        with suppress(OSError):
            start.complete("A text")
        assert start.process.wait(60) == 1
        assert start.lines_with(_MISSING)


@pytest.mark.parametrize("fault", ["patch in engine", "patch in API server"])
def test_a_failure_of_our_code_starts_plain_vllm(fault, core, folder):
    with core.start(folder, broken_environment(folder, fault)) as start:
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        (warning,) = start.lines_with("WARNING")
        assert "starts again without preloading" in warning
        assert start.terminate() == 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["vllm.log"]], ids=str)
def test_the_command_is_missing(arguments, core):
    done = core.run([sys.executable, "-m", "vllm_cli", "explain", *arguments])
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"Error: {_MISSING}\n")


def test_the_contracts_of_all_other_imports_hold(core):
    before, *contracts = (ROOT / "pyproject.toml").read_text().split(_CONTRACT)
    others = [contract for contract in contracts if "vllm_cli.explain" not in contract]
    assert len(others) == len(contracts) - 2
    (core.folder / "pyproject.toml").write_text(_CONTRACT.join([before, *others]))
    shutil.copytree(ROOT / "tools", core.folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = core.run([sys.executable, "-c", lint, "--no-cache"])
    assert done.returncode == 0, done.stdout + done.stderr
