"""Logins in addresses are masked; everything else is unchanged."""

import pytest

from envs.redaction import without_login


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://name:sesame@host:8/x", "https://********@host:8/x"),
        ("https://name:ses@me@host/x", "https://********@host/x"),
        ("at http://sesame@a and http://b/x@y", "at http://********@a and http://b/x@y"),
        ("https://host/x?mail=a@b", "https://host/x?mail=a@b"),
        ("https://host, or write to a@b", "https://host, or write to a@b"),
        ("name@host", "name@host"),
    ],
)
def test_a_login_before_the_host_is_masked(text: str, shown: str) -> None:
    assert without_login(text) == shown
