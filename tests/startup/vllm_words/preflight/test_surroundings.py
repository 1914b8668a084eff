"""The programs that a start needs, and the files that its flags name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from startup.vllm_words import installed
from startup.vllm_words.installed import TorchBuild
from startup.vllm_words.preflight import surroundings
from startup.vllm_words.preflight.named_files import file_findings
from startup.vllm_words.preflight.surroundings import surroundings_findings
from tests.startup.vllm_words.preflight.conftest import CheckStart


def _found(start: CheckStart, *words: str, version: str = "0.32.0+cpu") -> list[tuple[str, str]]:
    found = surroundings_findings(start("m", *words, version=version))
    return [(finding.check, finding.severity) for finding in found if finding.check not in ("shm", "nofile")]


@pytest.fixture
def has_programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function after which only these programs are installed."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)

    def set_programs(*names: str) -> None:
        monkeypatch.setattr(surroundings.shutil, "which", lambda name: name if name in names else None)

    return set_programs


def test_a_compiler_for_a_cpu(start, has_programs):
    has_programs("g++")
    assert _found(start) == []
    has_programs()
    assert _found(start) == [("compiler", "warning")]
    assert _found(start, "-O0") == []


def test_a_compiler_for_a_gpu(start, has_programs, monkeypatch, tmp_path):
    monkeypatch.setattr(installed, "read_torch_build", lambda: TorchBuild((13, 0)))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    has_programs()
    assert _found(start, version="0.32.0") == [("compiler", "warning")]
    has_programs("gcc")
    monkeypatch.setattr(surroundings.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert _found(start, version="0.32.0") == [("compiler", "warning")]
    (tmp_path / "Python.h").touch()
    assert _found(start, version="0.32.0") == []


def test_the_port_of_a_service_named_vllm_is_none_of_vllms(start, has_programs, monkeypatch):
    has_programs("g++")
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:8000")
    assert _found(start) == [("port_variable", "error")]
    monkeypatch.setenv("VLLM_PORT", "29500")
    assert _found(start) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("VLLM_INTERVAL", "often", "VLLM_INTERVAL 'often' is not a number: correct it or unset it"),
        ("VLLM_PORT", "8000a", "VLLM_PORT '8000a' is not a whole number"),
        ("VLLM_LOGGING_LEVEL", "verbose", "VLLM_LOGGING_LEVEL=VERBOSE is no level of logs"),
    ],
)
def test_a_value_of_a_variable_that_ends_vllm(start, has_programs, monkeypatch, name, value, message):
    has_programs("g++")
    monkeypatch.setenv(name, value)
    (found,) = (each for each in surroundings_findings(start("m")) if each.check == "environment")
    assert (found.severity, message in found.message) == ("error", True)


def test_variables_that_vllm_takes(start, has_programs, monkeypatch):
    has_programs("g++")
    values = {"VLLM_INTERVAL": "1e3", "VLLM_OTHER": "x", "VLLM_LOGGING_LEVEL": "debug"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert _found(start) == []
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "own")
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    assert _found(start) == []


def test_ranks_need_shared_memory(start, monkeypatch):
    monkeypatch.setattr(surroundings, "free_bytes", lambda _: 64 << 20)
    (finding,) = [f for f in surroundings_findings(start("m", "-tp", "2")) if f.check == "shm"]
    assert "has 64.0 MiB free, 2 ranks may need 2.0 GiB" in finding.message
    assert not [f for f in surroundings_findings(start("m")) if f.check == "shm"]


def _found_files(start: CheckStart, *words: object) -> list[tuple[str, str]]:
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
    assert _found_files(start, "--chat-template", path) == []
    assert _found_files(start, "--chat-template", "{{ 1 }}") == []
    ((severity, message),) = _found_files(start, "--chat-template", "missing.jinja")
    assert (severity, message) == ("error", "--chat-template missing.jinja: there is no such file")


def test_certificates(start):
    found = _found_files(start, "--ssl-certfile", "/missing.crt", "--ssl-keyfile", "/missing.key")
    assert [severity for severity, _ in found] == ["error", "error"]
    assert "--ssl-keyfile /missing.key" in found[1][1]
    ((severity, _),) = _found_files(start, "--ssl-ca-certs", "/missing.crt")
    assert severity == "warning"


@pytest.mark.parametrize("content", ["{", None], ids=["broken", "missing"])
def test_a_log_configuration_that_some_versions_ignore(start, tmp_path, content):
    path = tmp_path / "logging.json"
    if content is not None:
        path.write_text(content)
    ((severity, message),) = _found_files(start, "--log-config-file", path)
    assert severity == "warning"
    assert str(path) in message


def test_plugins(start, tmp_path):
    path = tmp_path / "plugin.py"
    path.touch()
    assert _found_files(start, "--tool-parser-plugin", path) == []
    ((severity, _),) = _found_files(start, "--tool-parser-plugin", "missing.py")
    assert severity == "warning"


def test_modules(start):
    assert _found_files(start, "--middleware", "json.JSONEncoder") == []
    ((severity, message),) = _found_files(start, "--middleware", "no_such_package.Class")
    assert severity == "error"
    assert "there is no module no_such_package" in message


def test_adapters(start, adapter, tmp_path):
    text = json.dumps({"name": "a", "path": str(adapter)})
    assert _found_files(start, "--enable-lora", "--lora-modules", f"a={adapter}", text, "", "None") == []
    assert _found_files(start, "--enable-lora", "--lora-modules", "a=someone/adapter") == []
    ((severity, message),) = _found_files(start, "--lora-modules", f"a={adapter}")
    assert (severity, message) == ("error", "--lora-modules a needs --enable-lora")
    ((severity, message),) = _found_files(start, "--enable-lora", "--lora-modules", f"a={tmp_path}/missing")
    assert f"there is no folder {tmp_path}/missing" in message
    ((severity, message),) = _found_files(start, "--enable-lora", "--lora-modules", f"a={tmp_path}")
    assert "has no adapter_config.json" in message
    ((severity, message),) = _found_files(start, "--enable-lora", "--lora-modules", "adapter")
    assert "neither NAME=PATH nor JSON" in message


def test_the_rank_of_an_adapter(start, adapter):
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 64}))
    words = ("--enable-lora", "--lora-modules", f"a={adapter}")
    ((_, message),) = _found_files(start, *words)
    assert message == f"{adapter} has rank 64, --max-lora-rank allows 16: give --max-lora-rank 64"
    assert _found_files(start, *words, "--max-lora-rank", "64") == []


def test_variables_of_libraries_are_checked(start, has_programs, monkeypatch, tmp_path):
    has_programs("g++")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "none"))
    assert _found(start) == [("environment", "error")]
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/tmp/" + "x" * 65)
    assert _found(start) == []
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/tmp/" + "x" * 66)
    assert _found(start) == [("environment", "error")]


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [("HF_HUB_ETAG_TIMEOUT", "soon", "9"), ("HF_HUB_DOWNLOAD_TIMEOUT", "1s", "9"), ("TORCH_LOGS", "foo", "dynamo")],
)
def test_variables_with_which_an_import_fails(start, has_programs, monkeypatch, name, wrong, right):
    has_programs("g++")
    for value, expected in ((wrong, [("environment", "error")]), (right, [])):
        monkeypatch.setenv(name, value)
        assert _found(start) == expected


def test_settings_of_vllms_log_are_a_file(start, has_programs, monkeypatch, tmp_path):
    has_programs("g++")
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(tmp_path / "none"))
    assert _found(start) == [("environment", "error")]
    (tmp_path / "none").touch()
    assert _found(start) == []
