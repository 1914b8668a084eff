"""The hooks of the installed vLLM are checked once; the result is kept while the sources are the same."""

import os
from pathlib import Path

import pytest

from startup.hooks.sources import Finding
from startup.vllm.installed import InstalledVllm
from startup.vllm.launch import hooks
from startup.vllm.launch.hooks import (
    check_installed,
    describe_unfit,
    find_obstacle,
)
from tests.startup.vllm.fake_start import variant

FINDINGS = (
    Finding("spans", "does not fit", ("no instrument",)),
    Finding("prefixes of streams", "not needed"),
    Finding("lazy torch.compile", "not checked", ("torch is not installed here",)),
    Finding("port", "applies"),
)


@pytest.fixture
def vllm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> InstalledVllm:
    fake = variant(folder)
    monkeypatch.syspath_prepend(str(fake))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(folder / "cache"))
    return InstalledVllm("0.32.0", fake / "vllm")


def _state(vllm: InstalledVllm, hook: str) -> str:
    check_installed.cache_clear()
    return next(finding.state for finding in check_installed(vllm) if finding.hook == hook)


@pytest.mark.thorough
def test_the_result_is_kept_until_a_source_changes(vllm, monkeypatch, folder):
    assert _state(vllm, "spans") == "applies"
    with monkeypatch.context() as patched:
        patched.setattr(hooks, "check_hooks", lambda *_: pytest.fail("checked again"))
        assert _state(vllm, "spans") == "applies"
    tracing = vllm.folder / "tracing.py"
    tracing.write_text(tracing.read_text().replace("def instrument", "def changed"))
    assert _state(vllm, "spans") == "does not fit"


@pytest.mark.thorough
@pytest.mark.parametrize("content", ["", '{"files": [], "findings": 1}'], ids=["empty", "other"])
def test_a_damaged_file_is_replaced(vllm, folder, content):
    assert _state(vllm, "spans") == "applies"
    (path,) = (folder / "cache" / "vllm_cli" / "hooks").iterdir()
    path.write_text(content)
    assert _state(vllm, "spans") == "applies"
    assert path.read_text() != content


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_read_only_cache_folder_does_not_matter(vllm, folder):
    (folder / "cache").mkdir(mode=0o500)
    assert _state(vllm, "spans") == "applies"


def test_hooks_that_do_not_fit_are_left_out_and_told_in_one_line():
    left_out = ["spans", "prefixes of streams"]
    assert hooks._hooks_to_leave_out(FINDINGS) == left_out
    assert describe_unfit(FINDINGS) == (
        "starts without some speed-ups, since these hooks do not fit: 'spans'; `vllm-cli preload check` shows all"
    )
    assert find_obstacle(FINDINGS) is None
    assert describe_unfit(FINDINGS[1:]) is None


def test_an_essential_hook_is_an_obstacle():
    obstacle = find_obstacle([Finding("port", "does not fit", ("no bind",))])
    assert obstacle == "the hook 'port' does not fit this version (no bind); `vllm-cli preload check` shows all"
