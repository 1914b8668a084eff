"""docs/cli.md, docs/flags.md and docs/environment.md."""

import pytest

from tests.generated_docs import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "stale: run `make docs`"


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_short_and_only_its_tables_are_wide(name: str) -> None:
    lines = PAGES[name]().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 110 and not line.startswith("|")] == []


def test_the_pages_do_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: build() for name, build in PAGES.items()}
    for name in ("HF_HOME", "XDG_CACHE_HOME", "VLLM_API_KEY", "NO_COLOR", "COLUMNS"):
        monkeypatch.setenv(name, "/elsewhere")
    assert {name: build() for name, build in PAGES.items()} == before
