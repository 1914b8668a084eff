"""The program of vLLM's Rust frontend, if the user wants it."""

import pytest

from startup.vllm_words.installed import InstalledVllm, missing_rust_frontend


@pytest.mark.parametrize(
    ("version", "value", "path", "problem"),
    [
        ("0.33.0", "1", "auto", "is not executable: chmod +x "),
        ("0.33.0", "1", "PACKAGE/vllm-rs", "is not executable: chmod +x "),
        ("0.33.0", "1", "PACKAGE/absent", "is missing: name it with VLLM_RUST_FRONTEND_PATH"),
        ("0.33.0", "1", "sh", None),
        ("0.33.0", "0", "auto", None),
        ("0.33.0", "yes", "auto", None),
        ("0.29.0", "1", "auto", None),
    ],
    ids=["package", "path", "absent", "on-PATH", "off", "no-number", "older"],
)
def test_a_program_that_cannot_be_executed_is_told_before_the_start(
    version, value, path, problem, tmp_path, monkeypatch
):
    (tmp_path / "vllm-rs").touch()
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", value)
    monkeypatch.setenv("VLLM_RUST_FRONTEND_PATH", path.replace("PACKAGE", str(tmp_path)))
    found = missing_rust_frontend(InstalledVllm(version, tmp_path))
    assert (found is not None and problem is not None and problem in found) or (found, problem) == (None, None)
