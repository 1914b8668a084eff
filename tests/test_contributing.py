"""The changes that CONTRIBUTING.md and docs/dev/changing.md teach work as told, on a copy of this repository.

What concerns one room has its tests there. Without vLLM 0.33 in .peers, the recipe of a release is not tried.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import yaml

from tests.vllm_engine.vllm_server import VllmServer

ROOT: Final = Path(__file__).parents[1]
_CAUSES: Final = Path("vllm_cli/explain/known_causes.yaml")
_LOGS: Final = Path("tests/vllm_cli/explain/logs.yaml")
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
    heading = "## [Unreleased]\n"
    changes = changes.replace(heading, f"{heading}\n- `explain` knows my cause.\n", 1)
    (copy / "CHANGELOG.md").write_text(changes)
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


_FORMAT: Final = """\
    "example": _json("<example>", end="</example>"),
"""
_TRANSCRIPT: Final = """\
    ("example", f"Sure. <example>{_F}</example>", ["Sure. ", F]),
"""


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_format_of_tool_calls_is_an_entry_a_name_and_an_output(copy):
    tests = ("tests/server/text/parsers", "-m", "not slow and not thorough")
    line = "TOOL_FORMATS: Final[dict[str, ToolFormat]] = {\n"
    _insert(copy / "server" / "text" / "parsers" / "formats.py", _FORMAT, after=line)
    code, output = _test(copy, *tests)
    assert (code, "test_every_format" in output) == (1, True), output
    config = copy / "server" / "terms" / "server_config.py"
    _insert(config, '    "example",\n', after="TOOL_FORMATS: Final = (\n")
    detection = copy / "server" / "text" / "parsers" / "detection.py"
    _insert(detection, '    ("example", ("<example>",)),\n', after="_TOOL_MARKS: Final[_Marks] = (\n")
    transcripts = copy / "tests" / "server" / "text" / "parsers" / "transcripts.py"
    line = "_TOOLS: Final[Sequence[tuple[str, str, Sequence[Part]]]] = (\n"
    _insert(transcripts, _TRANSCRIPT, after=line)
    code, output = _test(copy, *tests)
    assert code == 0, output


_CHECK: Final = """\
def check_example() -> Iterator[Finding]:
    \"\"\"The example of the page.\"\"\"
    if Path("fault-of-the-example").exists():
        yield error("example", "fault-of-the-example exists: remove it")


"""
_TEST_OF_CHECK: Final = """

@pytest.mark.parametrize("exists", [False, True])
def test_the_example(exists, preflight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if exists:
        (tmp_path / "fault-of-the-example").touch()
    assert len(found(preflight("some/model"), "example")) == exists
"""


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_check_of_the_preflight_is_a_function_and_its_call(copy):
    tests = copy / "tests" / "startup" / "session" / "preflight" / "test_preflight_machine.py"
    tests.write_text(tests.read_text() + _TEST_OF_CHECK)
    code, output = _test(copy, str(tests), "-k", "the_example")
    assert (code, "1 failed, 1 passed" in output) == (1, True), output
    folder = copy / "startup" / "session" / "preflight"
    resources = folder / "resources.py"
    resources.write_text(resources.read_text().replace("def check_libraries", f"{_CHECK}def check_libraries"))
    _insert(folder / "all_checks.py", "    check_example,\n", after="    check_disk,\n")
    _insert(
        folder / "all_checks.py",
        '        yield "example", check_example\n',
        after='yield "shm", lambda: check_shared_memory(self._options.shm)\n',
    )
    line = "_OF_MACHINE: Final = ("
    _insert(copy / "router" / "arguments" / "router_options.py", '"example", ', after=line)
    code, output = _test(copy, str(tests))
    assert code == 0, output
    (copy / "fault-of-the-example").touch()
    command = [sys.executable, "-m", "vllm_cli", "serve", "a", "b", "--engine", "embedded", "--preflight-only"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("fault-of-the-example exists")) == (3, 1), done.stdout + done.stderr


_HOOK: Final = """\
\"\"\"The example of the page.\"\"\"

from collections.abc import Callable
from typing import Final

from startup.hook import Hook, Name
from startup.imports.finder import wraps

_NAME: Final = Name("vllm.example", "count")
EXAMPLE: Final = Hook(
    "the example",
    does="counts in twos",
    without="counts in ones",
    promise="the same order",
    needs=(_NAME,),
    places={"api"},
)


@wraps(EXAMPLE, _NAME)
def _count_in_twos(count: Callable[[int], int]) -> Callable[[int], int]:
    return lambda number: 2 * count(number)
"""


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_hook_is_a_module_its_place_and_what_the_fake_vllm_needs(copy):
    patches, fake = copy / "startup" / "vllm" / "patches", copy / "tests" / "startup" / "vllm" / "fake"
    (patches / "example.py").write_text(_HOOK)
    _insert(patches / "placing.py", "    example,\n", after="    engine_idle,\n")
    _insert(patches / "placing.py", "    example,\n", after="PLACED_IN: Final = (\n")
    code, output = _doctor(sys.executable, copy, fake)
    assert code == 1, output
    assert re.search("the example +does not fit +module vllm.example", output), output
    (fake / "vllm" / "example.py").write_text("def count(number):\n    return number\n")
    code, output = _doctor(sys.executable, copy, fake)
    assert code == 0, output
    assert re.search("the example +applies", output), output
    code, output = _test(copy, "tests/test_docs.py", "-k", "generated or stale or up_to_date")
    assert code != 0, output
    _run(copy, sys.executable, "-m", "tools.generated_docs")
    assert "counts in twos" in (copy / "docs" / "dev" / "vllm-hooks.md").read_text()


def _doctor(interpreter: str | Path, *path: Path) -> tuple[int, str]:
    """Checks the hooks of the copy, the first folder of `path`."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [interpreter, "-m", "vllm_cli", "doctor", "--hooks"]
    done = subprocess.run(command, cwd=path[0], env=variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


_RELEASE: Final = "vllm-0.33.0"
_INTERPRETER: Final = ROOT / ".peers" / _RELEASE / "bin" / "python"
_needs_release: Final = pytest.mark.skipif(
    not _INTERPRETER.exists(), reason=f"vLLM is not installed in .peers/{_RELEASE}"
)


class _Step(NamedTuple):
    """A step of "A release of vLLM" that was not taken."""

    file: str
    taken: str
    """A text of the file, which the step has written."""
    checks: str
    """The tests that complain. If empty, `doctor --hooks` does."""
    complaint: str
    before: str = ""
    """The text before the step."""


_STEPS: Final = {
    "hook": _Step(
        "startup/vllm/patches/json_logs.py",
        r"record\.vllm_process_name",
        "",
        "JSON logs .*does not fit",
        "record.name_then",
    ),
    "flag": _Step(
        "startup/arguments/unsupported.py",
        '        "--kda-decode-backend": None,\n',
        "tests/vllm_engine/test_vllm_record.py -k table_of_flags",
        "--kda-decode-backend",
    ),
    "command": _Step(
        "envs/replacements.py",
        '    "snapshot",\n',
        "tests/vllm_engine/test_vllm_record.py -k every_command_of_vllm",
        "'snapshot'",
    ),
    "field": _Step(
        "server/apis/responses/serving.py",
        '        "safety_identifier": request.safety_identifier,\n',
        "tests/server/apis/test_vllm_fields.py -k every_field_of_vllm",
        "'safety_identifier'",
    ),
    "version": _Step("Makefile", " 0.33.0", "tests/test_docs.py -k releases_of_vllm", "tested_releases_of_vllm"),
}


@pytest.fixture
def release(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy whose tests run with vLLM 0.33."""
    (copy / ".peers").symlink_to(ROOT / ".peers")
    monkeypatch.setenv("PEER_VLLM", _RELEASE)
    return copy


@_needs_release
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", _STEPS)
def test_a_release_of_vllm_has_a_check_for_each_step(name, release):
    step = _STEPS[name]
    assert _complaint(release, step) is None
    file = release / step.file
    text = file.read_text()
    assert text.count(step.taken) == 1
    file.write_text(text.replace(step.taken, step.before))
    assert re.search(step.complaint, _complaint(release, step) or "")


def _complaint(copy: Path, step: _Step) -> str | None:
    """What the step's check says. None if it passes."""
    by_tests = step.checks.split()
    code, output = _test(copy, *by_tests, "-m", "") if by_tests else _doctor(_INTERPRETER, copy)
    return None if code == 0 else output


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_pages_that_do_not_mention_the_newest_release_are_named(copy):
    file = copy / "startup" / "vllm_arguments" / "installed.py"
    file.write_text(file.read_text().replace("NEWEST_TESTED: Final = (0, 33)", "NEWEST_TESTED: Final = (0, 34)"))
    code, output = _test(copy, "tests/test_docs.py", "-k", "newest_tested or releases_of_vllm")
    assert (code, "README.md" in output, "tested_releases_of_vllm" in output) == (1, True, True), output


@_needs_release
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_modules_that_the_shipped_lists_lack_are_printed_after_a_start(release, tmp_path_factory):
    lists = release / "startup" / "vllm" / "fork" / "shipped_modules.json"
    shipped = lists.read_text()
    without = json.loads(shipped)
    [modules] = [named.pop("eager") for named in without["cpu"].values()]
    [named] = without["cpu"].values()
    named["eager"] = []
    lists.write_text(json.dumps(without))
    folder = tmp_path_factory.mktemp("home")
    server = VllmServer("ours", ROOT / ".peers" / "model", "--enforce-eager", "--max-model-len=256", folder=folder)
    server.command = [str(_INTERPRETER), *server.command[1:]]
    server.variables["PYTHONPATH"] = str(release)

    def printed() -> set[str]:
        variables = {**os.environ, "PYTHONPATH": str(release), "VLLM_CACHE_ROOT": str(folder / "cache")}
        command = [_INTERPRETER, "-m", "tools.shipped_modules", str(server.process.pid)]
        done = subprocess.run(command, cwd=release, env=variables, capture_output=True, text=True, check=True)
        return {*json.loads(done.stdout[done.stdout.index("[") :])}

    with server:
        server.wait(lambda: server.health() == 200)
        assert not printed().isdisjoint(modules)
        lists.write_text(shipped)
        assert printed().isdisjoint(modules)
        server.terminate()
