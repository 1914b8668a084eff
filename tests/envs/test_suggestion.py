"""Guessing what a misspelt word was meant to be."""

from envs.suggestion import closest, did_you_mean


def test_the_most_similar_choice_is_taken_whatever_its_case() -> None:
    assert closest("SPWAN", ("spawn", "fork", "forkserver")) == "spawn"


def test_nothing_similar_is_no_guess() -> None:
    assert closest("thread", ("spawn", "fork")) is None
    assert did_you_mean("thread", ("spawn", "fork")) == ""
