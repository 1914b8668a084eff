"""docs/cli.md, docs/flags.md and the other generated pages."""

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from tests.generated_docs import DOCS, PAGES
from vllm_cli.lazy_group import load_command
from vllm_cli.main import COMMANDS


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "stale: run `make docs`"


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Each command and subcommand with its words, `standby stop`."""
    for entry in COMMANDS:
        command = load_command(entry)
        yield entry.name, command
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                member = command.get_command(click.Context(command), name)
                assert member is not None
                yield f"{entry.name} {name}", member


def _documented(words: str) -> str:
    """What docs/cli.md says about a command: its section, and the rows of other tables that name it."""
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    group, _, member = words.partition(" ")
    section = next((part for part in page.split("\n## ") if part.startswith(f"vllm-cli {group} ")), page)
    if not member and section is not page:
        return section
    name = member or group
    return "\n".join(line for line in section.splitlines() if re.match(rf"\| [^|]*`{name}[` ]", line))


@pytest.mark.parametrize(("words", "command"), [pytest.param(*each, id=each[0]) for each in _commands()])
def test_the_page_of_commands_has_every_option_that_help_shows(words: str, command: click.Command) -> None:
    if words == "serve":
        pytest.skip("its flags are in docs/flags.md")
    shown = CliRunner().invoke(command, ["--help"], terminal_width=200).output
    options = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", shown, re.MULTILINE)) - {"--help"}
    assert [option for option in sorted(options) if option not in _documented(words)] == []


def test_the_pages_do_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: build() for name, build in PAGES.items()}
    for name in ("HF_HOME", "XDG_CACHE_HOME", "VLLM_API_KEY", "NO_COLOR", "COLUMNS"):
        monkeypatch.setenv(name, "/elsewhere")
    assert {name: build() for name, build in PAGES.items()} == before
