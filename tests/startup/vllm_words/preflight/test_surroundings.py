"""The programs that a start needs, and the files that its flags name."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from startup.vllm_words import installed
from startup.vllm_words.installed import TorchBuild
from startup.vllm_words.preflight import surroundings
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


@pytest.mark.parametrize(
    ("ranks", "version", "told"), [(2, "0.32.0", ["2.0 GiB"]), (1, "0.32.0+cpu", ["160.0 MiB"]), (1, "0.32.0", [])]
)
def test_ranks_need_shared_memory(start, monkeypatch, ranks, version, told):
    monkeypatch.setattr(surroundings.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    findings = surroundings_findings(start("m", "-tp", str(ranks), version=version))
    texts = [finding.message for finding in findings if finding.check == "shm"]
    assert [text.split(": ")[0] for text in texts] == [
        f"/dev/shm has 64.0 MiB free, this start may need {need}" for need in told
    ]


def test_a_long_text_is_no_path_that_cannot_be_looked_up(start, monkeypatch):
    monkeypatch.setenv("VLLM_QUANT", f'{{"a": "{"x" * 5000}"}}')
    assert ("environment", "error") not in _found(start)
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", f'{{"version": 1, "a": "{"x" * 5000}"}}')
    assert ("environment", "error") in _found(start)
