"""The exit code and the output of `vllm-cli serve --engine vllm` for faulty starts."""

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.startup.vllm.fake_start import CHECKED, environment, prepend, run_fake, variant
from tests.startup.vllm_arguments.preflight.conftest import write_small_model
from tests.support.folders import short_folder
from tests.support.ports import free_port

pytestmark = pytest.mark.thorough


@pytest.fixture
def serve() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A function that starts the fake vLLM for CPUs, as the tests' torch may be built for missing GPUs.

    A first start fails in vLLM's parser, so that the record of vLLM are recorded.
    """
    with short_folder() as folder:

        def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
            env = environment(folder, **(CHECKED | variables))
            return run_fake(folder, *arguments, "--port", str(free_port()), env=env)

        first = run("m", "--dtpe", "half", HF_HUB_OFFLINE="1", VCLI_PREFLIGHT="off")
        assert "unrecognized arguments: --dtpe" in first.stderr
        yield run


def test_arguments_that_vllm_rejects_end_with_code_2(serve):
    done = serve("m", "--dtpe", "half", "--max-num-seqs", "none", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-6:] == [
        "Error: 3 faults:",
        "  vLLM has no flag --dtpe (did you mean '--dtype'?)",
        "  --max-num-seqs 'none' is not a whole number",
        done.stderr.splitlines()[-3],
        "  if vLLM would accept this start, give --preflight warn",
        "Code: VC-USAGE",
    ]
    assert len(done.stderr.splitlines()) <= 8
    assert serve("m", "--dtpe", "half", "--preflight-only", HF_HUB_OFFLINE="1").returncode == 2


def test_a_fault_of_the_config_file_names_its_place(serve, tmp_path):
    """Each check reads the file with the values of variables."""
    path = tmp_path / "serve.yaml"
    path.write_text("max-num-seqs: ${NUM}\nmax-model-len: ${LEN:-4k}\nenforce-eager: ${EAGER}\n")
    done = serve("m", "--config", str(path), "--preflight-only", HF_HUB_OFFLINE="1", NUM="many", EAGER="true")
    assert done.returncode == 2
    assert [line for line in done.stdout.splitlines() if "serve.yaml" in line] == [
        "error      usage  serve.yaml: max-num-seqs 'many' is not a whole number"
    ]


def test_the_preflight_alone_reports_all(serve, tmp_path):
    done = serve(str(tmp_path), "--preflight-only", "--json", "--chat-template", "no.jinja")
    assert done.returncode == 3
    checks = {finding["check"] for finding in json.loads(done.stdout)["findings"] if finding["severity"] == "error"}
    assert checks == {"chat_template", "config"}


@pytest.mark.parametrize(
    ("arguments", "variables", "is_told"),
    [(("--preflight", "off"), {}, False), ((), {"VCLI_PREFLIGHT": "warn"}, True)],
    ids=["off by flag", "warning by variable"],
)
def test_a_start_may_go_on(serve, tmp_path, arguments, variables, is_told):
    """The start continues after the preflight, and fails later."""
    done = serve(str(tmp_path), *arguments, "--chat-template", "no.jinja", "--raises", "ValueError", **variables)
    assert ("no.jinja: there is no" in done.stderr) == is_told
    assert "Error: 2 faults" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dtpe", "half"),
        ("—dtype", "half"),
        ("--max-num-seqs", "none"),
        ("argument",),
    ],
    ids=" ".join,
)
def test_a_first_check_and_a_first_start_say_what_later_ones_say(arguments):
    """A fresh home has no record of vLLM's flags. A check makes it, and a start asks vLLM's parser."""
    with short_folder() as folder:
        model = str(write_small_model(folder / "model"))
        command = ("--port", str(free_port()), "--enforce-eager", "--model", model, *arguments)
        checks, starts = (environment(folder / name, **CHECKED, TMPDIR=str(folder)) for name in ("a", "b"))
        first, later = (run_fake(folder, *command, "--preflight-only", env=checks) for _ in range(2))
        assert first.returncode in (2, 3)
        assert (first.returncode, _faults(first.stdout)) == (later.returncode, _faults(later.stdout))
        assert ["loading its parser, once" in done.stderr for done in (first, later)] == [True, False]
        first, later = (run_fake(folder, *command, env=starts) for _ in range(2))
        assert (first.returncode, _error(first.stderr)) == (later.returncode, _error(later.stderr))
        assert "vLLM's own flags are checked by vLLM: first start here" in first.stderr
        assert "usage: " not in first.stderr


def _error(log: str) -> str:
    return log[log.index("Error: ") :]


def _faults(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("error", "warning"))]


def test_a_parser_that_cannot_be_loaded_is_no_passed_check():
    with short_folder() as folder:
        broken = prepend(variant(folder), "entrypoints/cli/serve", "raise ImportError('libcuda.so.1 is missing')\n")
        env = environment(folder, broken, **CHECKED, HF_HUB_OFFLINE="1")
        done = run_fake(folder, str(folder), "--preflight-only", env=env)
        assert done.returncode == 3
        assert "because its parser cannot be loaded: " in done.stdout
        assert "libcuda.so.1 is missing" in done.stdout
