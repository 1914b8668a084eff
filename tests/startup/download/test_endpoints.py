"""HF_ENDPOINT may list mirrors; libraries see the first one only."""

import os

import pytest

from startup.download.endpoints import hub_endpoints, use_first_endpoint


def test_the_hub_itself_is_used_without_a_mirror() -> None:
    assert hub_endpoints() == ("https://huggingface.co",)


def test_libraries_see_the_first_of_several_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://a.example/, https://b.example,,https://a.example")
    assert hub_endpoints() == ("https://a.example", "https://b.example")
    use_first_endpoint()
    assert os.environ["HF_ENDPOINT"] == "https://a.example"
    assert hub_endpoints() == ("https://a.example", "https://b.example")
    use_first_endpoint()
    assert hub_endpoints() == ("https://a.example", "https://b.example")


def test_a_variable_that_was_changed_since_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://a.example,https://b.example")
    use_first_endpoint()
    monkeypatch.setenv("HF_ENDPOINT", "https://c.example")
    assert hub_endpoints() == ("https://c.example",)
