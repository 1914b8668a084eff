"""Files, folders and modules that flags name."""

import json
from pathlib import Path

import pytest

from startup.vllm.preflight.named_files import file_findings
from tests.startup.vllm.preflight.conftest import CheckStart


def _found(start: CheckStart, *words: object) -> list[tuple[str, str]]:
    return [(finding.severity, finding.message) for finding in file_findings(start("m", *map(str, words)))]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16}))
    return folder


def test_templates(start, tmp_path):
    path = tmp_path / "template.jinja"
    path.write_text("{{ 1 }}")
    assert _found(start, "--chat-template", path) == []
    assert _found(start, "--chat-template", "{{ 1 }}") == []
    ((severity, message),) = _found(start, "--chat-template", "missing.jinja")
    assert (severity, message) == ("error", "--chat-template missing.jinja: there is no such file")


def test_certificates(start):
    found = _found(start, "--ssl-certfile", "/missing.crt", "--ssl-keyfile", "/missing.key")
    assert [severity for severity, _ in found] == ["error", "error"]
    assert "--ssl-keyfile /missing.key" in found[1][1]
    ((severity, _),) = _found(start, "--ssl-ca-certs", "/missing.crt")
    assert severity == "warning"


@pytest.mark.parametrize("content", ["{", None], ids=["broken", "missing"])
def test_a_log_configuration_that_some_versions_ignore(start, tmp_path, content):
    path = tmp_path / "logging.json"
    if content is not None:
        path.write_text(content)
    ((severity, message),) = _found(start, "--log-config-file", path)
    assert severity == "warning"
    assert str(path) in message


def test_plugins(start, tmp_path):
    path = tmp_path / "plugin.py"
    path.touch()
    assert _found(start, "--tool-parser-plugin", path) == []
    ((severity, _),) = _found(start, "--tool-parser-plugin", "missing.py")
    assert severity == "warning"


def test_modules(start):
    assert _found(start, "--middleware", "json.JSONEncoder") == []
    ((severity, message),) = _found(start, "--middleware", "no_such_package.Class")
    assert severity == "error"
    assert "there is no module no_such_package" in message


def test_adapters(start, adapter, tmp_path):
    text = json.dumps({"name": "a", "path": str(adapter)})
    assert _found(start, "--enable-lora", "--lora-modules", f"a={adapter}", text, "", "None") == []
    assert _found(start, "--enable-lora", "--lora-modules", "a=someone/adapter") == []
    ((severity, message),) = _found(start, "--lora-modules", f"a={adapter}")
    assert (severity, message) == ("error", "--lora-modules a needs --enable-lora")
    ((severity, message),) = _found(start, "--enable-lora", "--lora-modules", f"a={tmp_path}/missing")
    assert f"there is no folder {tmp_path}/missing" in message
    ((severity, message),) = _found(start, "--enable-lora", "--lora-modules", f"a={tmp_path}")
    assert "has no adapter_config.json" in message
    ((severity, message),) = _found(start, "--enable-lora", "--lora-modules", "adapter")
    assert "neither NAME=PATH nor JSON" in message


def test_the_rank_of_an_adapter(start, adapter):
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 64}))
    words = ("--enable-lora", "--lora-modules", f"a={adapter}")
    ((_, message),) = _found(start, *words)
    assert message == f"{adapter} has rank 64, --max-lora-rank allows 16: give --max-lora-rank 64"
    assert _found(start, *words, "--max-lora-rank", "64") == []
