import pytest

from router.arguments import model_check
from router.arguments.model_check import with_sleep_arguments
from router.model_entry import ModelEntry

_FLAG = "--enable-sleep-mode"


def _entry(*arguments: str, **keys: object) -> ModelEntry:
    return ModelEntry(**{"name": "m", "arguments": ("m", *arguments), "engine": "vllm", **keys})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "deepest", "levels", "adds_flag", "notice"),
    [
        (_entry(), 2, (), False, ""),
        (_entry(on_swap="sleep"), 2, (1, 2), True, ""),
        (_entry(idle_sleep_s=60.0), 1, (1,), True, ""),
        (_entry(on_swap="sleep", sleep_levels=(2,)), 2, (2,), True, ""),
        (_entry(on_swap="sleep", sleep_levels=(2,)), 1, (1,), True, "sleeps only at level 1"),
        (_entry(_FLAG), 2, (1, 2), False, ""),
        (_entry(on_swap="sleep"), 0, (), False, "cannot sleep, and is stopped instead: its engines"),
        (_entry(on_swap="sleep", engine="embedded"), 2, (), False, ""),
    ],
    ids=["no", "swap", "idle", "fixed", "too-deep", "own-flag", "nodes", "embedded"],
)
def test_a_model_that_is_to_sleep_gets_the_flag(entry, deepest, levels, adds_flag, notice, monkeypatch):
    monkeypatch.setattr(model_check, "can_sleep", lambda _: "")
    monkeypatch.setattr(model_check, "deepest_level", lambda _: deepest)
    found = with_sleep_arguments(entry)
    assert found.entry.sleep_levels == levels
    assert found.entry.arguments == (*entry.arguments, *((_FLAG,) if adds_flag else ()))
    assert notice in found.notice
    assert bool(notice) == bool(found.notice)


def test_where_vllm_has_no_sleep_mode_the_model_is_stopped_and_a_line_says_so(monkeypatch):
    monkeypatch.setattr(model_check, "can_sleep", lambda variables: variables["WHY"])
    monkeypatch.setattr(model_check, "deepest_level", lambda _: 2)
    found = with_sleep_arguments(_entry(on_swap="sleep", env={"WHY": "no GPU"}))
    assert (found.entry.sleep_levels, found.notice) == ((), "cannot sleep, and is stopped instead: no GPU")
    assert with_sleep_arguments(_entry(_FLAG, env={"WHY": "no GPU"})).entry.sleep_levels == (1, 2)
