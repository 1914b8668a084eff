"""`vllm-cli explain` with the failure in a log, with a code, and with logs whose form hides the cause."""

import json
import os
import pty
import re
from pathlib import Path

import click
import click.testing
import pytest

from tests.support.cli import run_cli
from vllm_cli.explain.command import DIVIDED, FORMER, explain
from vllm_cli.explain.table import BY_CODE

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
    for arguments in ((), ("-",)):
        assert _run(*arguments, text=LOG).stdout == result.stdout
    found = json.loads(_run(log, "--json").stdout)
    facts = [found[name] for name in ("failed", "cause", "code", "process", "phase", "line")]
    in_json = [True, "no-room-for-kv-cache", "VC-NO-ROOM-FOR-KV-CACHE", "EngineCore pid=40", "sized the KV cache", 5]
    assert facts == in_json


def test_a_code_is_explained_without_a_log():
    assert re.fullmatch(r"Cause: .+\nDo: .+\nCode: VC-PORT-IN-USE\n", _run("vc-port-in-use").stdout)
    assert json.loads(_run("VC-PORT-IN-USE", "--json").stdout)["cause"] == "port-in-use"


def test_codes_of_earlier_releases_say_where_they_went():
    assert not BY_CODE.keys() & {*FORMER, *DIVIDED}
    for former, now in FORMER.items():
        assert _run(former).stdout == _run(now).stdout
    for code in DIVIDED:
        refused = _run(code).exception
        assert isinstance(refused, click.BadParameter)
        assert re.fullmatch(f"{code} is of an earlier release, .*: give the log.", refused.message)


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
    assert "neither an error nor a start" in _run(text="hello\n").stderr
    assert json.loads(_run("--json", text="").stdout) == {"failed": False}


_FRAME = 'Traceback (most recent call last):\n  File "/x/{}", line 7, in f\n'
_OTHERS = {
    "SGLang": "[2026-09-03 11:03:37] server_args=ServerArgs(model_path='x')\nRuntimeError: CUDA out of memory\n",
    "SGLang's frames": _FRAME.format("site-packages/sglang/srt/server.py") + "RuntimeError: CUDA out of memory\n",
    "a client": _FRAME.format("site-packages/openai/_client.py") + "ValueError: x is not supported\n",
    "vllm bench": _FRAME.format("site-packages/vllm/benchmarks/serve.py") + "ValueError: x is not supported\n",
}


@pytest.mark.parametrize("text", _OTHERS.values(), ids=_OTHERS)
def test_a_log_of_another_program_gets_no_flags_of_vllm(text):
    first, *_, advice, _code = _run(text=text).stdout.splitlines()
    assert first.startswith("No line of this log is of a vLLM server. The program failed")
    assert advice == "Do: Search the issues of the program that wrote this log for the message."


@pytest.mark.parametrize("text", [LOG, _FRAME.format("vllm/x.py") + "ValueError: x is not supported\n", "OSError: x\n"])
def test_a_log_of_a_server_or_a_pasted_line_is_not_of_another_program(text):
    assert "No line of this log" not in _run(text=text).stdout


def test_only_a_line_about_readiness_shows_that_vllm_served():
    assert "vLLM served" in _run(text="(APIServer pid=1) INFO: Application startup complete.\n").stderr
    assert "engine started" in _run(text="INFO 09-03 11:03:37 [x.py:7] Supported_tasks: ['generate']\n").stderr
    of_llama = _run(text="srv  llama_server: model loaded\nmain: server is listening on http://127.0.0.1:8080\n")
    assert "no line of it is of a vLLM server" in of_llama.stderr


def _usage_error(text: str) -> str:
    with pytest.raises(click.UsageError) as error:
        click.testing.CliRunner().invoke(explain, (), input=text, standalone_mode=False, catch_exceptions=False)
    return error.value.message


_TIMES = [f"2026-09-03T11:03:{number:02}Z {line}" for number, line in enumerate(LOG.splitlines())]


def test_a_log_that_begins_with_its_newest_line_is_refused():
    assert "newest line" in _usage_error("\n".join(reversed(_TIMES)))
    assert _run(text="\n".join(_TIMES)).return_value == 0


def test_times_that_sometimes_go_back_are_no_wrong_order():
    assert _run(text="\n".join([_TIMES[-1], *_TIMES[:-1], *_TIMES])).return_value == 0


def test_a_json_array_is_refused():
    assert "jq" in _usage_error(json.dumps([{"message": line} for line in LOG.splitlines()]))


@pytest.mark.parametrize("separator", ["", " ", "\\n"])
def test_a_log_without_line_breaks_is_refused(separator):
    begin = "(APIServer pid=1) INFO 09-03 11:03:00 [utils.py:253] vLLM API server version 0.32.0"
    traceback = [*_FRAME.format("vllm/config.py").splitlines(), "ValueError: Invalid repository ID"]
    lines = [begin, *(f"(APIServer pid=1) {line}" for line in traceback)]
    assert "line breaks" in _usage_error(separator.join(lines))
    assert "line breaks" in _usage_error(separator.join([begin] * 400))


def test_a_traceback_in_a_message_is_no_lost_line_break():
    quoted = "RuntimeError: worker said 'Traceback (most recent call last):\\n  File \"x.py\", line 1'"
    assert _run(text=f"{LOG}{quoted}\n").return_value == 0


def test_a_terminal_is_told_what_the_command_waits_for():
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"hello\n\x04\x04")
        assert "Ctrl-D" in _run(os.ttyname(theirs)).stderr
        assert "Ctrl-D" not in _run(text="hello\n").stderr
    finally:
        os.close(ours)
        os.close(theirs)


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
