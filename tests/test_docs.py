"""The documentation keeps its rules for line lengths, links and figures. Generated pages are up to date."""

import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from base.security.api_keys import OPEN_PATHS, STATUS_PATHS
from base.server_settings import LifecycleConfig
from startup.logs.setup import PACKAGES
from startup.vllm_arguments.installed import NEWEST_TESTED, InstalledVllm
from tests.support.peer_vllm import versions_of_make
from tools.figures.pages import BEGIN, END, SHOWS_FIGURES, TEMPLATE
from tools.figures.record import Figures
from tools.generated_docs import DOCS, MAX_CHARS, walk_commands
from tools.generated_docs import PAGES as GENERATED
from vllm_cli.commands.of_vllm import VllmCommand

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INDEX = ROOT / "docs" / "README.md"
"""The list of all pages."""
ADDITIONS = [ROOT / "vllm_cli" / "explain"]
ROOMS = [
    ROOT / "router" / "README.md",
    *(addition / "README.md" for addition in ADDITIONS),
    *sorted(ROOT.glob("startup/*/README.md")),
    *sorted(ROOT.glob("server/*/README.md")),
]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *ROOMS]
OTHERS = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *(page for name in ("tests", "tools") for page in (ROOT / name).rglob("README.md")),
]
ALL_PAGES = [README, *PAGES, *OTHERS]
_MAX_CELL_CHARS = 200
HANG_S = 15
"""What the time to stop has besides `--drain-grace` and `--shutdown-timeout` (docs/operations.md)."""
_MODULES = [
    f"/{path.relative_to(ROOT)}" for package in (*PACKAGES, "tests", "tools") for path in (ROOT / package).rglob("*.py")
]


def _prose(path: Path) -> list[str]:
    """The lines outside of code blocks and tables."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith("|")]


def test_every_room_has_a_page():
    packages = {path.parent for name in ("startup", "server") for path in ROOT.glob(f"{name}/*/__init__.py")}
    assert {page.parent for page in ROOMS} == {*packages, ROOT / "router", *ADDITIONS}


def test_pages_for_newcomers_begin_with_a_command():
    pages = [ROOT / "docs" / f"{name}.md" for name in ("fast-starts", "many-models", "troubleshooting")]
    assert [page for page in pages if "```sh" not in page.read_text().splitlines()[:8]] == []


def test_lines_and_table_cells_are_short():
    long = []
    for page in (README, *PAGES):
        long += [f"{page.name}: {line}" for line in _prose(page) if len(line) > MAX_CHARS]
        rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
        cells = [cell for row in rows for cell in re.split(r"(?<!\\)\|", row)]
        long += [f"{page.name}: {cell}" for cell in cells if len(cell) > _MAX_CELL_CHARS]
    assert long == []


def test_links_lead_somewhere():
    dead = []
    for page in ALL_PAGES:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not path.startswith("http") and not (target.exists() and (not anchor or anchor in _anchors(target))):
                dead.append(f"{page.name}: {link}")
    assert dead == []


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_list_of_pages_and_the_page_of_a_room_from_the_architecture():
    text, rooms = INDEX.read_text(), (ROOT / "docs" / "dev" / "architecture.md").read_text()
    links = {
        page: f"(../../{page.relative_to(ROOT)}" if page in ROOMS else f"({page.relative_to(INDEX.parent)}"
        for page in PAGES
        if page != INDEX
    }
    assert "(docs/README.md)" in README.read_text()
    assert [page for page, link in links.items() if link not in (rooms if page in ROOMS else text)] == []


@pytest.mark.thorough
def test_nothing_tells_to_install_this_project_from_a_package_index():
    """No index has this project, but `pip install .` in a clone works. The changelog may name an index."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    pages = [ROOT / page for page in listed.split("\0") if page]
    texts = {page: page.read_text(errors="replace") for page in pages if page.is_file()}
    told = re.compile(rf"install\b.*\b{name}", re.IGNORECASE)
    assert [f"{page}: {found}" for page, text in texts.items() for found in told.findall(text)] == []


@pytest.mark.parametrize("page", SHOWS_FIGURES, ids=lambda page: page.name)
def test_a_page_of_figures_is_that_of_the_json_files(page):
    assert page.read_text() == SHOWS_FIGURES[page](Figures()), "stale: run `make figures ARGS=--write`"


def test_no_figure_is_typed_by_hand():
    """Numbers with units or ranges are figures. `make figures` writes them into the pages from JSON files."""
    typed = re.compile(r"\d (?:s|ms|GiB|GB|MiB|MB|%)\b|\d tok/s|\d–\d")
    before, _, rest = README.read_text().partition(BEGIN)
    texts = {"README.md": before + rest.partition(END)[2], TEMPLATE.name: TEMPLATE.read_text()}
    assert {name: typed.findall(text) for name, text in texts.items()} == dict.fromkeys(texts, [])


def test_the_page_of_security_lists_the_paths_that_need_no_key():
    text = (ROOT / "docs" / "security.md").read_text()
    [open_paths] = re.findall(r"\*\*No key is needed\*\* for (.*?), nor for", text, re.DOTALL)
    [status_paths] = re.findall(r"\*\*Nor is a key needed\*\* for (.*?): ", text, re.DOTALL)
    assert set(re.findall(r"`([^`]+)`", open_paths)) == OPEN_PATHS
    assert set(re.findall(r"`([^`]+)`", status_paths)) == STATUS_PATHS


def test_the_page_of_logs_names_every_logger_and_role():
    text = (ROOT / "docs" / "observability.md").read_text()
    sources = "".join(Path(f"{ROOT}{module}").read_text() for module in _MODULES if not module.startswith("/tests"))
    roles = re.findall(r"configure_logging\(.*, role=\"(\w+)\"|rename_process\(\"(\w+)\"", sources)
    named = {*PACKAGES, *filter(None, itertools.chain(*roles))} - {"prefetch"}  # a command, without JSON
    assert "router" in named
    assert [name for name in sorted(named) if f"`{name}`" not in text] == []


def test_the_specification_is_the_newest_tested_release_of_vllm():
    for page in ("docs/README.md", "CONTRIBUTING.md", "docs/api.md", "docs/flags.md"):
        named = re.findall(r"(?:vLLM|`vllm serve`) (\d+\.\d+)", (ROOT / page).read_text())
        assert set(named) == {".".join(map(str, NEWEST_TESTED))}, page


def test_the_tested_releases_of_vllm_are_those_of_the_makefile():
    tested = [InstalledVllm(f"{version}+cpu", ROOT) for version in versions_of_make()]
    assert [vllm.version for vllm in tested if not vllm.is_start_tested] == []
    assert max(vllm.release for vllm in tested) == NEWEST_TESTED


def test_the_columns_of_the_page_about_memory_add_up():
    page = (ROOT / "docs" / "fleet.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    names = [name for name, *_ in rows]
    begin, end = names.index("launcher, later the API server"), names.index("all")
    for column in (1, 2, 3):
        *parts, total = [int(row[column].partition(" ")[0]) for row in rows[begin : end + 1]]
        assert sum(parts) == total, column


def test_the_page_of_operations_has_the_times_to_stop_of_the_product_and_the_manifests():
    page = (ROOT / "docs" / "operations.md").read_text()
    drain_s = LifecycleConfig().shutdown_timeout_s
    assert f"`--shutdown-timeout` seconds (default: {drain_s:g})" in page
    assert f"+ {HANG_S} s: {drain_s + HANG_S:g} s by default" in page
    manifests = ROOT / "deploy" / "kubernetes"
    periods = [
        re.findall(r"terminationGracePeriodSeconds: (\d+)", path.read_text())
        for path in (manifests / "embedded" / "server.yaml", manifests / "vllm" / "server.yaml")
    ]
    [[embedded], [vllm]] = periods
    assert f"delays SIGTERM. {embedded}; {vllm} in our manifest for vLLM" in page


def test_modules_that_pages_name_exist():
    """`startup/session/session.py` means this file. `session.py` means any file whose path ends so."""
    endings = {module[place:] for module in _MODULES for place, char in enumerate(module) if char == "/"}
    named = {(page, name) for page in ALL_PAGES for name in re.findall(r"`([\w/]+\.py)`", page.read_text())}
    assert [(page, name) for page, name in named if f"/{name}" not in endings] == []


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_up_to_date(name):
    assert (DOCS / name).read_text(encoding="utf-8") == GENERATED[name](), "stale: run `make docs`"


def _documented(arguments: str) -> str:
    """The text about a command in docs/cli.md: its section, or the rows of tables that name the command."""
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    group, _, member = arguments.partition(" ")
    section = next((part for part in page.split("\n## ") if re.match(rf"vllm-cli .*\b{group}\b", part)), page)
    if not member and section is not page:
        return section
    name = member or group
    return "\n".join(line for line in section.splitlines() if re.match(rf"\| [^|]*`{name}[` ]", line))


def test_the_page_of_commands_has_every_option_that_help_shows():
    """The flags of `serve` are in docs/flags.md. Those of vLLM's commands are vLLM's."""
    for arguments, command in walk_commands():
        if arguments != "serve" and not isinstance(command, VllmCommand):
            shown = CliRunner().invoke(command, ["--help"], terminal_width=200).output
            options = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", shown, re.MULTILINE)) - {"--help"}
            documented = _documented(arguments)
            assert [option for option in sorted(options) if option not in documented] == [], arguments


def test_the_pages_do_not_depend_on_the_environment(monkeypatch):
    before = {name: build() for name, build in GENERATED.items()}
    for name in ("HF_HOME", "XDG_CACHE_HOME", "VLLM_API_KEY", "NO_COLOR", "COLUMNS"):
        monkeypatch.setenv(name, "/elsewhere")
    assert {name: build() for name, build in GENERATED.items()} == before
