"""What surrounds the program in the deployment files: users, probes, time-outs and folders."""

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
from typing import Any

import pytest
import yaml

from base.server_settings import LifecycleConfig
from startup.ground.serve_words import ServeWords
from startup.vllm_words.command_line import CommandLine
from tests.deploy.shipped import ROOT, STARTS, STARTS_OF_VLLM, last, read_stages
from vllm_cli.commands.standby import standby
from vllm_cli.commands.wait import wait

MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").iterdir())
SERVICE = ROOT / "deploy" / "systemd" / "vllm-cli.service"
FILES = (ROOT / "Dockerfile", ROOT / "compose.yaml", ROOT / ".dockerignore", *(ROOT / "deploy").rglob("*.*"))
STANDBY = ROOT / "deploy" / "systemd" / "vllm-cli-standby.service"
DRAIN_S = LifecycleConfig().shutdown_timeout_s
MODELS = ROOT / "deploy" / "models.yaml"
_PAGE = ROOT / "docs" / "many-models.md"


def _documents(path: Path) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(path.read_text())}


def pod_templates(path: Path) -> dict[str, dict[str, Any]]:
    """The pods of a manifest by the names of `STARTS`."""
    (spec,) = [one["spec"] for kind, one in _documents(path).items() if kind in ("Deployment", "LeaderWorkerSet")]
    group = spec.get("leaderWorkerTemplate", {})
    roles = {f"{path.stem} {role}": group[f"{role}Template"] for role in ("leader", "worker") if group}
    return roles or {path.stem: spec["template"]}


PODS = {name: pod for path in MANIFESTS for name, pod in pod_templates(path).items()}


def _service(path: Path = SERVICE) -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text())
    return unit["Service"]


def test_the_image_contains_every_package_and_nothing_else():
    build = read_stages()[0]
    sources = [word for copy in build if copy.name == "COPY" for word in copy.words[:-1]]
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_a_registry(path):
    assert "://" not in path.read_text()
    assert (
        re.findall(
            r"\b(?:[\w-]+\.)+(?:io|com|org|dev|net)/",
            re.sub(r"(kubernetes\.io|prometheus\.io|nvidia\.com|leaderworkerset\.x-k8s\.io)/", "", path.read_text()),
        )
        == []
    )


def test_compose_has_time_for_the_drain():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["llm"]
    assert float(service["stop_grace_period"].removesuffix("s")) > DRAIN_S


@pytest.mark.parametrize("name", PODS)
def test_a_pod_mounts_its_volumes_has_time_for_the_drain_and_probes(name):
    spec = PODS[name]["spec"]
    [container] = spec["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in spec["volumes"]} == set(mounts.values())
    is_vllm = name in STARTS_OF_VLLM
    drain_s = float(CommandLine.of(STARTS[name].serve_words).value("--shutdown-timeout") or 0) if is_vllm else DRAIN_S
    assert spec["terminationGracePeriodSeconds"] > drain_s
    assert {"/cache", "/dev/shm" if is_vllm else "/tmp"} <= set(mounts)
    probes = {name: probe for name, probe in container.items() if name.endswith("Probe")}
    if not is_vllm:
        assert {probe["httpGet"]["path"] for probe in probes.values()} == {"/readyz", "/livez"}
        assert _allowed_s(probes["startupProbe"]) == 600
        assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"  # else all files are made writable
    elif not name.endswith("worker"):
        assert {probe["httpGet"]["path"] for probe in probes.values()} == {"/health"}
        assert _allowed_s(probes["startupProbe"]) >= 600


def _allowed_s(probe: dict[str, Any]) -> int:
    return int(probe["periodSeconds"] * probe["failureThreshold"])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_service_selects_the_pods_that_listen_and_claims_exist(path):
    documents, pods = _documents(path), pod_templates(path)
    selector = documents["Service"]["spec"]["selector"]
    chosen = [name for name, pod in pods.items() if selector.items() <= pod["metadata"]["labels"].items()]
    assert chosen == [name for name in pods if not name.endswith("worker")]
    volumes = [volume for pod in pods.values() for volume in pod["spec"]["volumes"]]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]
    assert claims == [one["metadata"]["name"] for one in documents.values() if one["kind"] == "PersistentVolumeClaim"]


def _line(start: str) -> CommandLine:
    return CommandLine.of(ServeWords(STARTS[start].serve_words).engine_words)


def test_leader_and_workers_form_one_group():
    name = "vllm-leaderworkerset"
    leader, worker = (
        {flag.fact.name: flag.values for flag in _line(f"{name} {role}").flags} for role in ("leader", "worker")
    )
    assert (leader.pop("--node-rank"), worker.pop("--node-rank")) == (("0",), ("1",))
    assert worker.pop("--headless") == ()
    assert leader == worker
    assert leader["--pipeline-parallel-size"] == leader["--nnodes"]
    for role in ("leader", "worker"):
        [container] = PODS[f"{name} {role}"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == leader["--tensor-parallel-size"][0]


def test_the_unit_waits_for_readiness_and_for_the_drain():
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_accepts_the_units(tmp_path):
    program = tmp_path / "vllm-cli"
    program.touch(0o755)
    for unit in SERVICE.parent.iterdir():
        text = unit.read_text().replace("/opt/vllm-cli/bin/vllm-cli", str(program))
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / name) for name in ("vllm-cli.service", "vllm-cli.socket", STANDBY.name)]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=200
    )
    assert "vllm-cli" not in done.stderr, done.stderr


def test_the_first_line_names_the_schema():
    of_page = _PAGE.read_text().partition("```yaml\n")[2]
    for file, text in ((MODELS, MODELS.read_text()), (_PAGE, of_page)):
        schema = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (file.parent / schema).resolve() == ROOT / "router" / "models.schema.json"
