"""Suggestions for misspelt words."""

from envs.suggestion import closest, did_you_mean


def test_the_most_similar_choice_is_suggested_in_any_case() -> None:
    assert closest("SPWAN", ("spawn", "fork", "forkserver")) == "spawn"


def test_a_word_unlike_any_choice_gets_no_suggestion() -> None:
    assert closest("thread", ("spawn", "fork")) is None
    assert did_you_mean("thread", ("spawn", "fork")) == ""
