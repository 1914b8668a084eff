"""The changes that CONTRIBUTING.md and docs/dev/changing.md teach work as told, on a copy of this repository.

What concerns one room has its tests there. A release of vLLM needs that release, and is no test.
"""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[1]
_CAUSES: Final = Path("startup/reports/causes/known_causes.yaml")
_LOGS: Final = Path("tests/startup/reports/causes/logs.yaml")
_ENTRY: Final = """\
  - name: my-cause
    source: vllm#12345
    title: the example of CONTRIBUTING.md
    texts: ["{text}"]
    advice: Make room.
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with the files that git tracks here, in their present state."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    _run(tmp_path, "git", "init", "-q")
    _run(tmp_path, "git", "add", "-A")
    return tmp_path


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


def _test(folder: Path, *arguments: str) -> tuple[int, str]:
    """Runs tests of the copy. Returns pytest's exit code and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_the_first_change_fails_then_passes_and_is_not_too_large(copy):
    page = (ROOT / "CONTRIBUTING.md").read_text()
    log = textwrap.dedent(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])  # type: ignore[index]
    (entry,) = yaml.safe_load(log)
    tests = str(_LOGS.with_name("test_first_cause.py"))
    with (copy / _LOGS).open("a") as file:
        file.write(f"\n{log}")
    code, output = _test(copy, tests, "-k", "shows_its_cause")
    assert (code, "my-cause" in output) == (1, True), output
    causes = (copy / _CAUSES).read_text()
    cause = _ENTRY.format(text=entry["log"].strip().rpartition(": ")[2])
    (copy / _CAUSES).write_text(causes.replace("causes:\n", f"causes:\n\n{cause}", 1))
    changes = (copy / "CHANGELOG.md").read_text()
    (copy / "CHANGELOG.md").write_text(changes.replace("### Fixed\n", "### Fixed\n- `explain` knows my cause.\n", 1))
    code, output = _test(copy, str(_LOGS.parent), "tests/test_docs.py", "-m", "not slow and not thorough")
    assert code == 0, output
    _run(copy, "git", "add", "-A")
    _run(copy, sys.executable, "-m", "tools.size")


def _insert(file: Path, text: str, *, after: str) -> None:
    """Inserts lines into a file of the copy, after a line that is there once."""
    before, line, rest = file.read_text().partition(after)
    assert line, f"{file} has no line {after!r}"
    file.write_text(f"{before}{line}{text}{rest}")


def _check(copy: Path, tests: str, wrong: str) -> None:
    """Runs the tests that a page names. They fail, for the reason `wrong`, until `make docs` has run."""
    arguments = (*tests.split(), "tests/test_docs.py", "-m", "not slow and not thorough")
    code, output = _test(copy, *arguments)
    assert (code, wrong in output) == (1, True), output
    _run(copy, sys.executable, "-m", "tools.generated_docs")
    code, output = _test(copy, *arguments)
    assert code == 0, output


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_flag_and_its_documentation_come_from_one_field(copy):
    field = """
    drain_example_s: float = setting(0.0, "--drain-example", "The example.", role="port", minimum=0)
"""
    before = """        role="port",
        minimum=0,
        below=inf,
    )
"""
    _insert(copy / "base" / "server_settings.py", field, after=before)
    _insert(copy / "tests" / "vllm_cli" / "arguments" / "plans.yaml", _PLAN_OF_FLAG, after="# Spellings of flags")
    _check(copy, "tests/vllm_cli/arguments", "stale: run `make docs`")
    assert "`--drain-example" in (copy / "docs" / "flags.md").read_text()
    shown = _run(copy, sys.executable, "-m", "vllm_cli", "serve", "--help=drain-example").stdout
    assert "The example." in shown


_PLAN_OF_FLAG: Final = """ and an example
- arguments: m --drain-example 5
  plan: {server.lifecycle.drain_example_s: 5}
- arguments: m --drain-example=-1
  error: --drain-example
# Further spellings"""


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_variable_is_declared_once(copy):
    line = '    VCLI_EXAMPLE = text("The example of the page.")\n'
    _insert(copy / "envs" / "registry.py", line, after='is not given.")\n')
    _check(copy, "tests/envs", "stale: run `make docs`")
    assert "VCLI_EXAMPLE" in (copy / "docs" / "flags.md").read_text()


_ENDPOINT: Final = """

class EchoRequest(RequestBody, kw_only=True):
    \"\"\"The example of docs/dev/changing.md.\"\"\"

    model: str | None = None
    text: str


class EchoServing:
    \"\"\"Serves the example.\"\"\"

    async def echo(self, request: EchoRequest, context: RequestContext) -> dict[str, Any]:
        \"\"\"Returns the text.\"\"\"
        return {"text": request.text}
"""
_CONVERSATION: Final = """\
{"why": "the example of docs/dev/changing.md", "POST /echo": {"text": "a"}, "answer": {"text": "a"}}
"""


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_an_endpoint_is_a_class_a_row_and_a_conversation(copy):
    file = copy / "tests" / "conversations" / "info.jsonl"
    file.write_text(_CONVERSATION + file.read_text())
    code, output = _test(copy, "tests/server/http/test_conversations.py", "-k", "info", "-m", "")
    assert (code, "the example of docs/dev/changing.md" in output) == (1, True), output
    module = copy / "server" / "apis" / "tokenization.py"
    module.write_text(module.read_text() + _ENDPOINT)
    table = copy / "server" / "http" / "routes" / "table.py"
    table.write_text(
        table.read_text().replace("tokenization import ", "tokenization import EchoRequest, EchoServing, ")
    )
    _insert(table, '        post("/echo", EchoRequest, EchoServing().echo),\n', after="tokenization.tokenize),\n")
    _insert(copy / "docs" / "api.md", "| `POST /echo` | the example |\n", after="and back to text |\n")
    code, output = _test(copy, "tests/server/http/test_conversations.py", "tests/test_docs.py", "-k", "info or docs")
    assert code == 0, output
    assert "deselected" in output
