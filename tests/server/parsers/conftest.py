"""Makes results comparable."""

import pytest

from server.parsers.tools import json_formats


@pytest.fixture(autouse=True)
def fixed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of Mistral's calls are random."""
    monkeypatch.setattr(json_formats, "_make_id", lambda: "abcDEF123")
