"""The Makefile with stand-ins for pip and the server: which commands run, in which order."""

import os
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent

FAKE_PYTHON = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp vllm-cli "$3/bin/"; echo venv "$3" >> log;;
  "-m pip "*) echo "Collecting torch"; echo "$*" >> log;;
  -m* | .ci/*) echo "$*" >> log;;
  *"import sys"*) exit {exit_if_old};;
  *ensurepip*) exit {exit_if_bare};;
  --version) echo Python 3.9.2;;
esac
"""
FAKE_SERVER = """#!/bin/sh
echo "vllm-cli $*" >> log
if [ -e wait ]; then
  trap 'echo interrupted >> log; exit 0' INT
  trap 'echo terminated >> log; exit 0' TERM
  echo serving
  while :; do sleep 0.05; done
fi
"""
INSTALL = "-m pip --disable-pip-version-check install -c constraints.txt -e .[embedded]"
INSTALL_DEV = INSTALL.replace("embedded", "embedded,dev")


class Clone:
    """A fresh clone with stand-ins for the interpreter and the server, which log their arguments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, path)
        self.write_script("vllm-cli", FAKE_SERVER)
        self.write_python()

    def write_python(self, *, is_old: bool = False, is_bare: bool = False) -> None:
        self.write_script("python", FAKE_PYTHON.format(exit_if_old=int(is_old), exit_if_bare=int(is_bare)))

    def write_script(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.words(*words), cwd=self.path, capture_output=True, text=True, timeout=120)

    def words(self, *words: str) -> list[str]:
        # Without the variables that the `make` which runs these tests exports.
        handed_down = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "JOBS", "PORT", "TORCH", "CHANGED")
        return ["env", *(word for name in handed_down for word in ("-u", name)), "make", "PYTHON=./python", *words]

    def take_log(self) -> list[str]:
        log = self.path / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_the_first_serve_installs_and_prepares_and_the_second_only_serves(clone):
    assert clone.make("serve").returncode == 0
    assert clone.take_log() == ["venv .venv", INSTALL, "-m startup.download", "vllm-cli serve --port 8000"]
    assert clone.make("serve").returncode == 0
    assert clone.take_log() == ["vllm-cli serve --port 8000"]


def test_the_first_serve_shows_what_pip_does_and_then_how_to_use_the_server(clone):
    shown = clone.make("serve", "PORT=9000").stdout
    assert "Installing vllm-cli into .venv" in shown
    assert "Collecting torch" in shown
    assert "\n  .venv/bin/vllm-cli chat --url http://localhost:9000\n" in shown


def test_port_and_arguments_reach_the_server(clone):
    clone.make("serve", "PORT=9000", "ARGS=some/model --max-model-len 512")
    assert clone.take_log()[-1] == "vllm-cli serve --port 9000 some/model --max-model-len 512"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_dependencies_are_installed_again_but_the_model_is_not_prepared_again(name, clone):
    clone.make("serve")
    clone.take_log()
    later = time.time() + 5
    os.utime(clone.path / name, (later, later))
    clone.make("serve")
    assert clone.take_log() == [INSTALL, "vllm-cli serve --port 8000"]


def test_tests_and_linters_install_their_tools_once(clone):
    clone.make("install-dev")
    assert clone.take_log() == ["venv .venv", INSTALL, INSTALL_DEV]
    clone.make("test", "ARGS=-k health")
    tests = "-m pytest -n 3 --dist worksteal -m not slow and not thorough -k health"
    assert clone.take_log() == ["-m startup.download", tests]


def test_the_tests_that_a_change_can_reach_are_found_first(clone):
    clone.make("test", "CHANGED=1", "JOBS=0")
    assert [line.split()[1] for line in clone.take_log()[-2:]] == ["tests.changed", "pytest"]


@pytest.mark.parametrize(
    ("target", "selected"),
    [("test-thorough", "thorough and not slow"), ("test-all", "not slow"), ("test-slow", "slow")],
)
def test_each_tier_selects_tests_by_their_marks(target: str, selected: str, clone):
    clone.make(target, "JOBS=0")
    assert clone.take_log()[-1] == f"-m pytest -n 0 --dist worksteal -o testpaths=tests tools -m {selected}"


def test_the_newest_releases_are_installed_in_their_own_environment_at_every_run(clone):
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    pip = "-m pip --disable-pip-version-check install"
    upgrade = f"{pip} --upgrade --upgrade-strategy eager {{}} -e .[embedded,dev]"
    rest = [
        f"{pip} --upgrade uvicorn",
        "-m startup.download",
        ".ci/newest.py -n 3 --dist worksteal -k health",
    ]
    clone.make("test-newest", "ARGS=-k health")
    assert clone.take_log() == ["venv .venv-newest", upgrade.format(torch), *rest]
    clone.make("test-newest", "ARGS=-k health", "TORCH=torch<3")
    assert clone.take_log() == [upgrade.format("torch<3"), *rest]
    assert not (clone.path / ".venv").exists()


def test_a_soak_leaves_its_result_in_the_build_folder_and_its_length_can_be_chosen(clone):
    assert clone.make("test-soak", "ARGS=--minutes 1").returncode == 0
    line = clone.take_log()[-1]
    assert line.startswith("-m tools.soak --cmd .venv/bin/vllm-cli serve --kv-cache")
    assert line.endswith(" --json build/soak.json --minutes 1")
    assert (clone.path / "build").is_dir()


@pytest.mark.parametrize(
    ("send", "number", "told"),
    [
        (os.killpg, signal.SIGINT, "interrupted"),
        (os.killpg, signal.SIGTERM, "terminated"),
        (os.kill, signal.SIGTERM, "terminated"),
    ],
    ids=["ctrl-c", "sigterm to all", "sigterm to make"],
)
def test_signals_reach_the_server(send: Callable[[int, int], None], number: int, told: str, clone: Clone):
    clone.make("install")
    (clone.path / "wait").touch()
    make = subprocess.Popen(
        clone.words("serve"),
        cwd=clone.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    with make:
        assert make.stdout is not None
        try:
            assert "serving\n" in iter(make.stdout.readline, "")
            send(make.pid, number)
            make.wait(120)
        except BaseException:
            os.killpg(make.pid, signal.SIGKILL)
            raise
    assert clone.take_log()[-1] == told


@pytest.mark.parametrize(
    ("lack", "message"),
    [
        ({"is_old": True}, "./python is Python 3.9.2; 3.11 or newer is needed"),
        ({"is_bare": True}, "sudo apt install python3-venv"),
        (None, "./python is not installed"),
    ],
    ids=["old", "without venv", "missing"],
)
def test_a_python_that_cannot_be_used_is_named_with_what_is_needed(lack: dict[str, bool] | None, message: str, clone):
    if lack is None:
        (clone.path / "python").unlink()
    else:
        clone.write_python(**lack)
    done = clone.make("serve")
    assert done.returncode != 0
    assert message in done.stderr
    assert clone.take_log() == []


def test_a_failed_installation_is_tried_again(clone):
    clone.write_script("python", FAKE_PYTHON.format(exit_if_old=0, exit_if_bare=0).replace("-m* |", "-m*) exit 1;;"))
    assert clone.make("serve").returncode != 0
    clone.write_python()
    shutil.copy(clone.path / "python", clone.path / ".venv" / "bin")
    assert clone.make("serve").returncode == 0
    assert clone.take_log()[-3:] == [INSTALL, "-m startup.download", "vllm-cli serve --port 8000"]


def test_clean_makes_a_fresh_clone_again(clone):
    clone.make("serve")
    clone.make("test-newest")
    assert clone.make("clean").returncode == 0
    assert list(clone.path.glob(".venv*")) == []


def test_before_a_commit_the_programs_of_make_lint_run():
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0].splitlines()[1:]
    wanted = [line.strip().replace("$(BIN)", ".venv/bin").split()[:2] for line in recipe]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].split()[:2] for hook in hooks] == wanted


@pytest.mark.parametrize("extra", ["", "embedded", "dev"])
def test_every_dependency_of_the_project_is_pinned(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {Requirement(word).name.lower() for word in wanted}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned
