"""A check that was not done never reads like a check that passed: each reason for it is told."""

import json
from pathlib import Path
from typing import NoReturn

import pytest

from base.machine.nvml import Gpu, GpuState
from envs.registry import env
from startup.arguments.serve_command import parse_start
from startup.session.preflight import memory_fit
from startup.session.preflight.all_checks import PreflightOptions
from startup.session.preflight.all_checks import run_preflight as run_embedded_preflight
from startup.session.preflight.report import PreflightReport, run_checks
from startup.settings.config import StartupConfig
from startup.vllm_arguments.installed import InstalledVllm, TorchBuild
from startup.vllm_arguments.preflight import all_checks, devices
from startup.vllm_arguments.vllm_record import Plugin
from tests.startup.vllm_arguments.preflight.conftest import CheckStart, write_small_model

_GPU = Gpu(0, "H200", "GPU-0", 140 << 30, 140 << 30, ())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of which everything can be checked, and caches without any other."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return write_small_model(tmp_path / "model")


def _report(start: CheckStart, *arguments: str, listens: bool = True, **options: object) -> PreflightReport:
    checked = start(*arguments, **options)
    return all_checks.run_preflight(checked.vllm, checked.line, PreflightOptions(is_listening=listens))


def _told(report: PreflightReport) -> list[str]:
    """The checks that were not done. Each form of the report says that there are some."""
    assert bool(report.unchecked) == ("not checked" in report.to_text().splitlines()[-1])
    assert bool(report.unchecked) != json.loads(report.to_json())["is_complete"]
    return [f"{finding.check}: {finding.message}" for finding in report.unchecked]


def test_a_whole_check_names_nothing(start, folder):
    assert _told(_report(start, str(folder))) == []


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [
        ("{} --dtpe half", {"is_first": True}, "flags: vLLM's own flags are checked by vLLM: first start here"),
        ("{}", {"has_plugin": True}, "plugins: rules that plugins of vLLM may change (own)"),
        ("{}", {"version": "0.28.1+cpu"}, "version: vLLM 0.28.1+cpu is older than 0.29"),
        ("{} --omni --dtpe half", {}, "flags: --omni"),
        ("{} --port", {}, "model: the model and more are checked once"),
        ("", {}, "model: no MODEL is named"),
        ("team/model", {}, "files: team/model is not on disk"),
        ("{} --enable-lora --lora-modules a=team/adapter", {}, "files: team/adapter is not on disk"),
        ("s3://bucket/model", {}, "files: s3://bucket/model is not on disk"),
        ("{} --config-format mistral", {}, "config: the configuration of"),
        ("{} --hf-config-path /other", {}, "config: the configuration of"),
        ("{} --load-format gguf", {}, "weights: the weights of"),
        ("{} --grpc", {"listens": False}, "address: the address is not checked"),
    ],
)
def test_what_a_command_line_leaves_open(start, folder, arguments, options, part):
    told = _told(_report(start, *(argument.replace("{}", str(folder)) for argument in arguments.split()), **options))
    assert [text for text in told if part in text], told


@pytest.mark.parametrize("device", ["rocm", "xpu", "other"])
def test_devices_that_cannot_be_examined(start, folder, monkeypatch, device):
    monkeypatch.setattr(InstalledVllm, "device", device)
    monkeypatch.setattr(devices, "_AMD", (folder,))
    assert [text for text in _told(_report(start, str(folder))) if text.startswith("device: ")]


@pytest.mark.parametrize(
    ("arguments", "visible", "state", "part"),
    [
        ("", None, GpuState("570.86", (0, 0), (_GPU,), None), "driver: the CUDA of driver or torch"),
        ("--device-ids 0", None, GpuState("570.86", (12, 8), (_GPU,), None), "gpu: --device-ids chooses the GPUs"),
        ("", "MIG-1", GpuState("570.86", (12, 8), (_GPU,), None), "gpu: CUDA_VISIBLE_DEVICES=MIG-1"),
    ],
)
def test_gpus_that_cannot_be_examined(start, folder, monkeypatch, arguments, visible, state, part):
    monkeypatch.setattr(InstalledVllm, "device", "cuda")
    monkeypatch.setattr(devices, "read_torch_build", lambda: TorchBuild((12, 8)))
    monkeypatch.setattr(devices, "read_gpus", lambda: state)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    told = _told(_report(start, str(folder), *arguments.split()))
    assert [text for text in told if part in text], told


def test_a_board_and_a_machine_that_report_nothing(start, folder, monkeypatch):
    monkeypatch.setattr(devices, "read_memory", lambda: None)
    assert [text for text in _told(_report(start, str(folder))) if text.startswith("memory: the machine")]
    monkeypatch.setattr(InstalledVllm, "device", "cuda")
    monkeypatch.setattr(devices, "_TEGRA", (folder,))
    assert [text for text in _told(_report(start, str(folder))) if text.startswith("gpu: this is a Tegra board")]


def test_a_platform_of_a_plugin(start, folder):
    checked = start(str(folder))
    plugin = Plugin("vllm.platform_plugins", "own", "own-1.0.dist-info")
    line = checked.line.of([str(folder)], checked.record._replace(installed_plugins=(plugin,)))
    report = all_checks.run_preflight(checked.vllm, line, PreflightOptions(is_listening=True))
    assert [text for text in _told(report) if text.startswith("device: a plugin provides the platform")]


def _raise() -> NoReturn:
    raise RuntimeError("broken")


def test_checks_that_end_with_an_error(monkeypatch):
    monkeypatch.setenv(env.HF_HUB_ETAG_TIMEOUT.name, "soon")
    report = run_checks([("broken", _raise), ("variable", env.HF_HUB_ETAG_TIMEOUT.get)])
    broken, variable = _told(report)
    assert broken == "broken: this check could not be done: RuntimeError: broken"
    assert env.HF_HUB_ETAG_TIMEOUT.name in variable


@pytest.mark.parametrize(
    ("model", "has_gpu", "part"),
    [("team/model", False, "files: team/model is not on disk"), ("{}", True, "memory: whether the model fits")],
)
def test_what_a_start_of_the_embedded_engine_leaves_open(folder, monkeypatch, model, has_gpu, part):
    monkeypatch.setattr(memory_fit, "expects_gpu", lambda: has_gpu)
    config = parse_start(["--engine", "embedded", model.replace("{}", str(folder))], is_quiet=True)
    assert isinstance(config, StartupConfig)
    told = _told(run_embedded_preflight(config, options=PreflightOptions(is_listening=True)))
    assert [text for text in told if part in text], told
