"""Finds the levels at which a model can sleep, and adds the flag that vLLM needs to sleep."""

from dataclasses import replace
from typing import Final, NamedTuple

from envs import foreign
from router.model_entry import ModelEntry
from startup.vllm_words.preflight.sleep_mode import can_sleep, deepest_level
from startup.words.secret_flags import find_values

_FLAG: Final = "--enable-sleep-mode"
_NEEDS_OTHERS: Final = "its engines are on several machines, or give their KV cache to others"


class SleepWords(NamedTuple):
    """An entry with its sleep flag and levels, and a notice for the user, which may be empty."""

    entry: ModelEntry
    notice: str = ""


def with_sleep_words(entry: ModelEntry) -> SleepWords:
    """Sets the sleep flag and the sleep levels of a complete entry. Without levels, the model is stopped."""
    has_flag = bool(find_values(entry.words, _FLAG))
    if entry.engine != "vllm" or not (has_flag or entry.should_sleep):
        return SleepWords(replace(entry, sleep_levels=()))
    deepest = deepest_level(entry.words)
    reason = can_sleep({**foreign.snapshot(), **entry.env}) or ("" if deepest else _NEEDS_OTHERS)
    if reason and not has_flag:
        return SleepWords(replace(entry, sleep_levels=()), f"cannot sleep, and is stopped instead: {reason}")
    levels = tuple(level for level in entry.sleep_levels if level <= deepest)
    notice = "" if levels else "sleeps only at level 1: level 2 would not restore all weights of this model"
    words = entry.words if has_flag else (*entry.words, _FLAG)
    return SleepWords(replace(entry, words=words, sleep_levels=levels or (1,)), notice)
