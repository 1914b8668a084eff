"""The file of `--log-config-file`: files for vLLM work here, invalid ones are reported with their path."""

import json
from typing import Any

import pytest

from startup.logs.setup import translate
from tests.cli import run_cli, run_python

HANDLERS = {"out": {"class": "logging.StreamHandler", "formatter": "short", "stream": "ext://sys.stdout"}}
FORMATTERS = {"short": {"class": "vllm.logging_utils.NewLineFormatter", "format": "%(name)s|%(message)s"}}
VLLM_FILE: dict[str, Any] = {
    "version": 1,
    "formatters": FORMATTERS,
    "handlers": HANDLERS,
    "loggers": {"vllm": {"handlers": ["out"], "level": "DEBUG", "propagate": False}},
}


def test_settings_of_vllms_logger_apply_to_ours_unless_named():
    loggers = translate(VLLM_FILE | {"loggers": VLLM_FILE["loggers"] | {"server": {"level": "ERROR"}}})["loggers"]
    assert loggers["startup"] == loggers["vllm"]
    assert loggers["server"] == {"level": "ERROR"}


def test_the_given_configuration_is_not_changed():
    before = json.dumps(VLLM_FILE)
    translate(VLLM_FILE)
    assert json.dumps(VLLM_FILE) == before


def test_a_file_written_for_vllm_is_applied():
    code = f"""
import logging
from startup.logs.options import LogOptions
from startup.logs.setup import configure_logging
configure_logging(LogOptions(level="ERROR", format="json", config={VLLM_FILE!r}), role="api")
logging.getLogger("server.run").debug("hello")
"""
    run = run_python(code)
    assert (run.stdout, run.stderr) == ("server.run|hello\n", "")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is not JSON"),
        ("[]", "does not contain a JSON object"),
        ("{}", '"version": 1 is missing'),
    ],
)
def test_an_invalid_file_is_a_usage_error(tmp_path, content, complaint):
    path = tmp_path / "logs.json"
    if content is not None:
        path.write_text(content)
    run = run_cli("serve", "--log-config-file", str(path), "--preflight-only")
    assert run.returncode == 2
    assert complaint in run.stderr
    assert str(path) in run.stderr
    assert "Traceback" not in run.stderr


def test_a_configuration_that_cannot_be_applied_is_a_usage_error(tmp_path):
    path = tmp_path / "logs.json"
    path.write_text(json.dumps({"version": 1, "handlers": {"out": {"class": "nowhere.Handler"}}}))
    run = run_cli("serve", "--log-config-file", str(path), "--port", "0")
    assert run.returncode == 2
    assert "--log-config-file" in run.stderr
    assert "nowhere" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_variable_names_the_file_without_the_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(tmp_path / "nothing.json"))
    run = run_cli("serve", "--preflight-only")
    assert run.returncode == 2
    assert "nothing.json" in run.stderr
