"""The pause before a retry."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from vllm_cli.batch.sender import pause_s


@pytest.mark.parametrize(
    ("retry_after", "expected_s"),
    [
        ("0", 0.05),
        (" 7 ", 7),
        ("99999", 600),
        pytest.param(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0.05, id="yesterday"),
    ],
)
def test_the_pause_follows_retry_after_within_limits(retry_after, expected_s):
    assert pause_s(5, retry_after) == pytest.approx(expected_s)


@pytest.mark.parametrize("retry_after", [None, "", "soon", "-1", "1.5", "nan"])
def test_without_retry_after_pauses_grow_up_to_30_seconds(retry_after):
    assert 0.25 <= pause_s(0, retry_after) <= 0.5
    assert 1 <= pause_s(2, retry_after) <= 2
    assert 15 <= pause_s(5000, retry_after) <= 30


def test_retry_after_may_be_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=500), usegmt=True)
    assert 0 < pause_s(0, later) <= 500
