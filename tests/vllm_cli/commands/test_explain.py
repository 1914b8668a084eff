"""`vllm-cli explain` shows the failure in a log."""

import json
import re
from pathlib import Path

import click.testing
import pytest

from tests.support.cli import run_cli
from vllm_cli.commands.explain import explain

LOG = """\
vllm-1  | (APIServer pid=1) INFO 09-03 11:03:00 [api_server.py:1351] vLLM API server version 0.32.0
vllm-1  | (EngineCore pid=40) ERROR 09-03 11:03:37 [core.py:712] EngineCore failed to start.
vllm-1  | (EngineCore pid=40) ERROR 09-03 11:03:37 [core.py:712] Traceback (most recent call last):
vllm-1  | (EngineCore pid=40) ERROR 09-03 11:03:37 [core.py:712]   File "/x/core.py", line 7, in get_kv_cache_configs
vllm-1  | (EngineCore pid=40) ERROR 09-03 11:03:37 [core.py:712] ValueError: No available memory for the cache blocks.
vllm-1  | (APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
vllm-1 exited with code 1
"""


def _run(*args: str, text: str | None = None) -> click.testing.Result:
    return click.testing.CliRunner().invoke(explain, args, input=text, standalone_mode=False)


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "vllm.log"
    path.write_text(LOG)
    return str(path)


def test_a_file_or_standard_input_is_explained_in_four_lines_or_as_json(log):
    result = _run(log)
    assert result.return_value == 0
    process, cause, advice, code = result.stdout.splitlines()
    assert process == "EngineCore (pid 40) failed while it sized the KV cache."
    assert cause.endswith(": ValueError: No available memory for the cache blocks.")
    assert advice.startswith("Do: Raise --gpu-memory-utilization")
    assert code == "Code: VC-NO-ROOM-FOR-KV-CACHE"
    for words in ((), ("-",)):
        assert _run(*words, text=LOG).stdout == result.stdout
    found = json.loads(_run(log, "--json").stdout)
    facts = [found[name] for name in ("failed", "cause", "code", "process", "phase", "line")]
    in_json = [True, "no-room-for-kv-cache", "VC-NO-ROOM-FOR-KV-CACHE", "EngineCore pid=40", "sized the KV cache", 5]
    assert facts == in_json


def test_a_code_is_explained_without_a_log():
    assert re.fullmatch(r"Cause: .+\nDo: .+\nCode: VC-PORT-IN-USE\n", _run("vc-port-in-use").stdout)
    assert json.loads(_run("VC-PORT-IN-USE", "--json").stdout)["cause"] == "port-in-use"


@pytest.mark.parametrize("name", ["usage", "keys-or-certificates"])
def test_a_log_that_ends_with_a_code_has_this_cause(name):
    code = f"VC-{name.upper()}"
    result = json.loads(_run("--json", text=f"Error: 2 faults:\n  one\n  two\nCode: {code}\n").stdout)
    assert (result["code"], result["cause"]) == (code, name)


def test_a_log_in_which_nothing_failed_as_in_a_start_that_a_signal_stopped():
    result = _run("--json", text="(EngineCore pid=2) INFO 09-03 11:03:37 [core.py:7] trigger received signal=SIGTERM\n")
    found = json.loads(result.stdout)
    assert (found["failed"], found["cause"], result.return_value) == (False, "stopped", 1)

    result = _run(text="INFO: Application startup complete.\n")
    assert result.return_value == 1
    assert result.stdout == ""
    assert "Nothing in this log failed" in result.stderr
    assert json.loads(_run("--json", text="").stdout) == {"failed": False}


@pytest.mark.smoke
def test_the_exit_code_of_the_program(log, invoke):
    assert run_cli("explain", log).returncode == 0
    assert invoke("explain", "/dev/null").returncode == 1
    missing = invoke("explain", "missing.log")
    assert (missing.returncode, "missing.log" in missing.stderr) == (2, True)


def test_all_known_causes_are_listed_without_a_log():
    listed = _run("--list").stdout.split("\n\n")
    assert len(listed) > 50
    assert [text for text in listed if not re.match(r"[a-z0-9-]+: .+\nDo: .+\nCode: VC-[A-Z0-9-]+", text)] == []
