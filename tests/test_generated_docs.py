"""docs/cli.md, docs/flags.md and the other generated pages."""

import re

import pytest
from click.testing import CliRunner

from tests.command_tree import walk_commands
from tests.generated_docs import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name):
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "stale: run `make docs`"


def _documented(words: str) -> str:
    """What docs/cli.md says about a command: its section, and the rows of other tables that name it."""
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    group, _, member = words.partition(" ")
    section = next((part for part in page.split("\n## ") if part.startswith(f"vllm-cli {group} ")), page)
    if not member and section is not page:
        return section
    name = member or group
    return "\n".join(line for line in section.splitlines() if re.match(rf"\| [^|]*`{name}[` ]", line))


@pytest.mark.parametrize(("words", "command"), [pytest.param(*each, id=each[0]) for each in walk_commands()])
def test_the_page_of_commands_has_every_option_that_help_shows(words, command):
    if words == "serve":
        pytest.skip("its flags are in docs/flags.md")
    shown = CliRunner().invoke(command, ["--help"], terminal_width=200).output
    options = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", shown, re.MULTILINE)) - {"--help"}
    documented = _documented(words)
    assert [option for option in sorted(options) if option not in documented] == []


def test_the_pages_do_not_depend_on_the_environment(monkeypatch):
    before = {name: build() for name, build in PAGES.items()}
    for name in ("HF_HOME", "XDG_CACHE_HOME", "VLLM_API_KEY", "NO_COLOR", "COLUMNS"):
        monkeypatch.setenv(name, "/elsewhere")
    assert {name: build() for name, build in PAGES.items()} == before
