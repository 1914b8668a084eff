"""`vllm-cli probes`: Kubernetes probes from start records."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from startup.timeline.history import StartRecord, history_path, record_start
from vllm_cli.commands.wait import wait
from vllm_cli.main import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))


def _record_starts(model: str, *seconds: float) -> None:
    for total_s in seconds:
        record_start(StartRecord(key=model, model=model, total_s=total_s, spans={}))


def _probes(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["probes", "--format", "json", *words]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_without_starts_ten_minutes_are_allowed(capsys):
    probe = _probes(capsys)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 600
    assert probe["httpGet"] == {"path": "/readyz", "port": 8000}


@pytest.mark.parametrize(
    ("seconds", "words", "period_s", "allowed_s"),
    [
        ((2.5, 3.0), (), 1, 60),
        ((20.0, 30.0, 45.0), (), 2, 180),
        ((20.0, 30.0), ("--factor", "10"), 2, 300),
        ((500.0,), (), 10, 2000),
        ((33.0, 90.3), (), 3, 363),  # 361.2 s, in whole periods
    ],
)
def test_a_start_may_take_a_multiple_of_the_slowest(seconds, words, period_s, allowed_s, capsys):
    _record_starts("llama", *seconds)
    probe = _probes(capsys, *words)["startupProbe"]
    assert probe["periodSeconds"] == period_s
    assert probe["periodSeconds"] * probe["failureThreshold"] == allowed_s


def test_probes_may_follow_from_the_starts_of_one_model(capsys):
    _record_starts("small", 3.0)
    _record_starts("large", 100.0)
    assert _probes(capsys, "small")["startupProbe"]["failureThreshold"] == 60
    assert _probes(capsys, "large")["startupProbe"]["failureThreshold"] == 40
    assert _probes(capsys) == _probes(capsys) != _probes(capsys, "small")


def test_the_probes_have_the_address_of_the_server(capsys):
    over_tls = _probes(capsys, "--port", "9000", "--ssl")
    assert over_tls["livenessProbe"]["httpGet"] == {"path": "/livez", "port": 9000, "scheme": "HTTPS"}
    by_command = _probes(capsys, "--uds", "/run/vllm.sock")["readinessProbe"]["exec"]["command"]
    assert by_command[:5] == ["vllm-cli", "wait", "--quiet", "--uds", "/run/vllm.sock"]


def test_a_probe_command_exits_before_the_kubelet_kills_it_and_keeps_the_allowed_time(capsys):
    """For a server that is not ready, a probe takes the whole timeout of `wait`."""
    _record_starts("llama", 20.0)
    for probe in _probes(capsys, "--uds", "/run/vllm.sock").values():
        words = probe["exec"]["command"][1:]
        assert wait.make_context("wait", words[1:]).params["timeout_s"] < probe["timeoutSeconds"]
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    startup = _probes(capsys, "--uds", "/run/vllm.sock")["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 80


def test_probes_of_vllm_use_its_health_route(capsys):
    assert {probe["httpGet"]["path"] for probe in _probes(capsys, "--engine", "vllm").values()} == {"/health"}


def test_yaml_names_the_starts_behind_its_figures(capsys):
    _record_starts("llama", 10.0, 20.0)
    assert main(["probes", "llama"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# 2 starts of llama took 15.0 s (median), 20.0 s at most: 80 s are allowed.\n")
    assert yaml.safe_load(text) == _probes(capsys, "llama")


def test_an_unreadable_history_counts_as_empty(capsys):
    history_path().parent.mkdir(parents=True)
    history_path().write_bytes(b"\xff{nonsense\n")
    assert _probes(capsys)["startupProbe"]["periodSeconds"] == 10
