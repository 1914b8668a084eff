"""Suggestions for misspelt words."""

from envs.suggestion import did_you_mean


def test_the_most_similar_choice_is_suggested_in_any_case() -> None:
    assert did_you_mean("SPWAN", ("spawn", "fork", "forkserver")) == " (did you mean 'spawn'?)"


def test_the_dashes_of_a_flag_make_no_words_similar() -> None:
    assert did_you_mean("--prot", ("--model", "--port")) == " (did you mean '--port'?)"
    assert did_you_mean("--xyz", ("--abc", "--x")) == ""


def test_a_word_unlike_any_choice_gets_no_suggestion() -> None:
    assert did_you_mean("thread", ("spawn", "fork")) == ""
