"""Flags for logs and statistics in the configuration."""

import json

import pytest

from vllm_cli.main import main


def test_the_content_of_the_log_config_file_is_the_configuration(parse, tmp_path, monkeypatch):
    path = tmp_path / "logs.json"
    path.write_text(json.dumps({"version": 1}))
    assert parse("m", "--log-config-file", str(path)).log_config == {"version": 1}
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(path))
    assert parse("m").logs.config == {"version": 1}


@pytest.mark.parametrize("words", ["/health,/metrics", " /health , /metrics ,"])
def test_paths_are_separated_by_commas(parse, words):
    config = parse("m", "--disable-access-log-for-endpoints", words)
    assert config.server.logging.disable_access_log_for_endpoints == ("/health", "/metrics")


def test_statistics_have_an_interval_or_are_not_logged(parse, monkeypatch):
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "2.5")
    config = parse("m", "--disable-log-stats")
    assert (config.server.logging.disable_log_stats, config.server.logging.log_stats_interval_s) == (True, 2.5)


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "soon"])
def test_an_interval_must_be_a_number_above_0(monkeypatch, capsys, value):
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", value)
    assert main(["serve", "--preflight-only"]) == 2
    assert f"VLLM_LOG_STATS_INTERVAL must be a number above 0, got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["flag", "variable", "file"])
def test_notices_have_the_format_of_the_log(place, parse, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VCLI_XYZZY", "1")
    words: tuple[str, ...] = ()
    if place == "flag":
        words = ("--log-format", "json")
    elif place == "variable":
        monkeypatch.setenv("VCLI_LOG_FORMAT", "json")
    else:
        (tmp_path / "config.yaml").write_text("log-format: json\n")
        words = ("--config", str(tmp_path / "config.yaml"))
    parse("m", "--enforce-eager", *words)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines] == [
        "VCLI_XYZZY is not a variable of vllm-cli.",
        "--enforce-eager has no effect: torch and transformers choose the kernels.",
    ]
    assert {(line["level"], line["role"], line["phase"]) for line in lines} == {("WARNING", "api", "command_line")}
