import logging
from collections.abc import Iterator

import pytest

from base.access_log import ACCESS_LOGGER, open_access_log
from base.server_settings import LoggingConfig


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    access = logging.getLogger(ACCESS_LOGGER)
    before = list(access.filters)
    yield access
    access.filters[:] = before


def _line(logger: logging.Logger, path: str, caplog: pytest.LogCaptureFixture) -> str | None:
    """The line of the access log as uvicorn writes it. None if the path is not logged."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger.name):
        logger.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", path, "1.1", 200)
    return caplog.records[0].getMessage() if caplog.records else None


def test_excluded_paths_are_not_logged_with_any_query(logger, caplog):
    open_access_log(LoggingConfig(disable_access_log_for_endpoints=("/health",)))
    assert _line(logger, "/health", caplog) is None
    assert _line(logger, "/health?x=/v1", caplog) is None
    assert _line(logger, "/healthy", caplog) is not None
    open_access_log(LoggingConfig())
    assert _line(logger, "/health", caplog) is not None
    assert len(logger.filters) == 2


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("?api_key=sesame", "?api_key=********"),
        ("?x=1&Access-Token=sesame%20&y=2", "?x=1&Access-Token=********&y=2"),
        ("?authorization=Bearer%20sesame", "?authorization=********"),
        ("?passphrase=sesame&my-pat=sesame", "?passphrase=********&my-pat=********"),
        ("?Session-Cookie=sesame&x_patch=1", "?Session-Cookie=********&x_patch=1"),
        ("?x=1&y=key", "?x=1&y=key"),
        ("?x=1?key=sesame?z", "?x=1?key=********"),
        ("?key&token=&x=1", "?key&token=&x=1"),
        ("", ""),
    ],
)
def test_secrets_in_urls_are_masked(query, shown, logger, caplog):
    open_access_log(LoggingConfig())
    assert _line(logger, f"/v1/models{query}", caplog) == f'127.0.0.1:5 - "GET /v1/models{shown} HTTP/1.1" 200'


def test_a_long_query_is_cut_and_still_masked(logger, caplog):
    open_access_log(LoggingConfig())
    line = _line(logger, "/health?x=" + "?key" * 500 + "&key=sesame" * 5000, caplog)
    assert line is not None
    assert "sesame" not in line
    assert "..." in line
    assert len(line) < 2200
