"""The use of vLLM's compile cache is read from its log, described, and disabled after a failure."""

import logging
import os
from pathlib import Path

import pytest

from startup.vllm.journal import Journal, StartRecordings
from startup.vllm.patches.compile_cache import describe, disable_failed_cache, record_compile_cache

_SWITCH = "VLLM_USE_AOT_COMPILE"
_FAILED = {"aot": "failed", "reason": "no finalize_loading"}


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        (("Directly load AOT compilation from path %s", "/path"), {"aot": "hit", "reason": None}),
        (("saved AOT compiled function to %s", "/path"), {"aot": "saved", "reason": None}),
        (("Compiling model again due to a load failure from %s, reason: %s", "/path", "no use"), None),
        (("Something else",), {}),
    ],
    ids=["hit", "saved", "failed", "else"],
)
def test_outcome_of_the_cache_is_read_from_vllms_log(
    words: tuple[str, ...], outcome: dict[str, object] | None, tmp_path: Path
) -> None:
    vllm_logger = logging.getLogger("vllm.compilation.decorators")
    filters = list(vllm_logger.filters)
    record_compile_cache(Journal(tmp_path))
    try:
        vllm_logger.warning(*words)
    finally:
        vllm_logger.filters[:] = filters
    expected = {"aot": "failed", "reason": "no use"} if outcome is None else outcome
    assert StartRecordings.read(tmp_path).compile_cache == expected


def test_a_cache_that_failed_to_load_is_disabled_in_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_SWITCH, raising=False)
    notice = disable_failed_cache(_FAILED)
    assert notice is not None
    assert "no finalize_loading" in notice
    assert os.environ[_SWITCH] == "0"


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_users_own_setting_stays(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_SWITCH, value)
    assert disable_failed_cache(_FAILED) is None
    assert os.environ[_SWITCH] == value


@pytest.mark.parametrize("outcome", [{}, {"aot": "hit"}, {"aot": "saved"}], ids=str)
def test_a_cache_that_did_not_fail_stays_enabled(outcome: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_SWITCH, raising=False)
    assert disable_failed_cache(outcome) is None
    assert _SWITCH not in os.environ


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"aot": "hit"}, "loaded from vLLM's cache"),
        ({"aot": "saved"}, "cached for the next start"),
        (_FAILED, "could not be loaded (no finalize_loading)"),
        ({"inductor_hits": 2, "inductor_misses": 1}, "2 of 3 graphs"),
    ],
    ids=["hit", "saved", "failed", "inductor"],
)
def test_outcome_is_described_as_text(outcome: dict[str, object], words: str) -> None:
    assert words in (describe(outcome) or "")


def test_a_start_that_compiles_nothing_has_no_description() -> None:
    assert describe({}) is None
