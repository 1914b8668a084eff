"""The table of known causes is complete. Each cause is recognised in the forms in which logs have it."""

import re

import pytest

from startup.reports.causes.cause import KnownCause
from startup.reports.causes.first_cause import find_cause
from startup.reports.causes.table import BY_CODE, KNOWN, OWN, STOPPED


def test_each_cause_has_a_public_source_or_errors_of_our_own():
    assert [cause.name for cause in KNOWN if not re.fullmatch(r"own|[\w.-]+#\d+", cause.source)] == []
    assert len({cause.name for cause in (*KNOWN, *OWN)}) == len(KNOWN) + len(OWN) > 130


@pytest.mark.thorough
@pytest.mark.parametrize("cause", BY_CODE.values(), ids=lambda cause: cause.name)
def test_title_and_advice_are_short_and_have_one_thought_a_sentence(cause):
    assert not cause.title.endswith(".")
    assert len(cause.title) <= 90
    assert 5 <= len(cause.advice) <= 260
    words = re.sub(r"`[^`]*`", "", f"{cause.title}. {cause.advice}")
    assert not re.search("[;:] ", words)


@pytest.mark.parametrize("cause", KNOWN, ids=lambda cause: cause.name)
def test_each_text_is_recognised_as_its_cause(cause):
    """No earlier cause in the table matches the text."""
    for text in cause.texts:
        line = text.strip("^$").replace("…", "something")
        is_error = re.match(r"[\w.]*(Error|Exception|Interrupt|NotFound|IsEnabled|Timeout)(:|$)", line)
        if line.startswith(" "):
            line = f"deploy.sh: line 17: 11440{line}"
        elif cause.where == "exception" and not is_error:
            line = f"RuntimeError: {line}"
        found = find_cause([line, "WorkerError: something"] if cause.where == "hint" else [line])
        assert found.known is cause, text


def test_a_text_can_have_gaps_and_ends():
    cause = KnownCause("x", "x", "^Killed$ | one … two | ends so$", "x")
    assert cause.matches("Killed")
    assert not cause.matches("Killed by")
    assert not cause.matches("was Killed")
    assert cause.matches("zero one and two three")
    assert not cause.matches("two one")
    assert cause.matches("it ends so, then ends so")
    assert not cause.matches("it ends so.")


def test_stopping_is_the_last_in_the_table():
    """If it came earlier, a shutdown with an error would count as a stop."""
    assert KNOWN[-1] is STOPPED
