"""What a start needs beside model and devices."""

from collections.abc import Callable

import pytest

from startup.vllm.preflight import surroundings
from startup.vllm.preflight.surroundings import surroundings_findings
from tests.startup.vllm.preflight.conftest import CheckStart


def _found(start: CheckStart, *words: str, version: str = "0.32.0+cpu") -> list[tuple[str, str]]:
    found = surroundings_findings(start("m", *words, version=version), words)
    return [(finding.check, finding.severity) for finding in found if finding.check not in ("shm", "nofile")]


@pytest.fixture
def has_programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Only these programs are installed."""
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
    monkeypatch.setattr(surroundings, "built_for", lambda _: "cuda")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    has_programs()
    assert _found(start) == [("compiler", "warning")]
    has_programs("gcc")
    monkeypatch.setattr(surroundings.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert _found(start) == [("compiler", "warning")]
    (tmp_path / "Python.h").touch()
    assert _found(start) == []


def test_ranks_need_shared_memory(start, monkeypatch):
    monkeypatch.setattr(surroundings, "free_bytes", lambda _: 64 << 20)
    (finding,) = [f for f in surroundings_findings(start("m", "-tp", "2"), ()) if f.check == "shm"]
    assert "has 64.0 MiB free, 2 ranks may need 2.0 GiB" in finding.message
    assert not [f for f in surroundings_findings(start("m"), ()) if f.check == "shm"]
