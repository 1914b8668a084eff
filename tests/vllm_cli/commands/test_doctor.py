"""`vllm-cli doctor` with both engines, and `vllm-cli explain` with the failure in a log."""

import json
import os
import pty
import re
from pathlib import Path

import click.testing
import pytest

from envs.registry import variables
from tests.startup.vllm.fake_start import environment
from tests.support.cli import run_cli
from vllm_cli.commands.explain import explain
from vllm_cli.main import main
from vllm_cli.version import VERSION

ROOT = Path(__file__).parents[3]


def test_a_start_with_a_fault_has_it_in_the_first_line(invoke, tmp_path):
    done = invoke("doctor", tmp_path / "no", "--engine", "embedded", "--port", "0")
    verdict, *rest = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert verdict.startswith("1 error")
    assert str(tmp_path / "no") in verdict
    assert [line for line in rest if line.startswith("# ")] == ["# Preflight", "# Machine", "# Kept between starts"]


def test_a_good_model_is_ok_for_programs_too_with_what_it_needs(invoke, model_path):
    done = invoke("doctor", model_path, "--engine", "embedded", "--port", "0", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], report["hooks"]) == (0, True, None)
    assert report["verdict"].startswith("ok")
    (need,) = [finding["message"] for finding in report["findings"] if finding["check"] == "memory"]
    assert "MiB are needed (256.6 MiB for the weights in bfloat16, " in need
    assert need.endswith(" are available")
    assert report["verdict"].endswith(": the embedded engine can be started here")
    assert report["machine"]["cpu"]["cores"] == os.cpu_count()
    assert "preloading_disabled" in report["kept"]


def test_each_of_several_models_has_a_section_and_the_worst_one_counts(invoke, tiny_llama, tmp_path):
    done = invoke("doctor", tiny_llama, tmp_path / "no", "--engine", "embedded", "--max-running", "2")
    verdict, *rest = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert verdict.startswith("1 error")
    assert f": no: MODEL {tmp_path / 'no'} is neither" in verdict
    titles = [line for line in rest if line.startswith("# ")]
    assert [title for title in titles if title != "# Preflight"] == [
        f"# Preflight of {tiny_llama.name}",
        "# Preflight of no",
        "# Machine",
        "# Kept between starts",
    ]
    assert any(line.split()[:2] == ["error", "model"] for line in rest[rest.index("# Preflight of no") :])
    done = invoke("doctor", tiny_llama, tiny_llama, "--engine", "embedded", "--json")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_file_of_models_is_examined_for_programs_too(invoke, tiny_llama, tmp_path):
    models = {"good": {"model": str(tiny_llama)}, "bad": {"cmd": "no-such-program --port ${PORT}"}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    done = invoke("doctor", "--models", tmp_path / "models.yaml", "--engine", "embedded", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    assert {name: each["ok"] for name, each in report["models"].items()} == {"good": True, "bad": False}
    assert [finding["check"] for finding in report["models"]["bad"]["findings"]] == ["program", "cmd"]
    assert "no-such-program" in report["verdict"]


@pytest.mark.thorough
def test_with_vllm_the_hooks_are_checked(tmp_path: Path):
    done = run_cli("doctor", "--engine", "vllm", "--json", env=environment(tmp_path), cwd=ROOT)
    report = json.loads(done.stdout)
    assert report["hooks"]["version"] in report["verdict"]
    assert done.returncode == (0 if report["hooks"]["fits"] else 1)
    assert ("warning" in report["verdict"]) is (not report["hooks"]["fits"])
    done = run_cli("doctor", "/no", "/nowhere", "--engine", "vllm", "--json", env=environment(tmp_path), cwd=ROOT)
    assert json.loads(done.stdout)["hooks"] == report["hooks"]


def test_env_shows_every_variable_with_its_source(monkeypatch, capsys):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "debug")
    assert main(["doctor", "--env", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [variable.name for variable in variables() if not variable.is_internal]
    assert (rows["VLLM_LOGGING_LEVEL"]["value"], rows["VLLM_LOGGING_LEVEL"]["source"]) == ("DEBUG", "environment")
    assert rows["VLLM_WORKER_MULTIPROC_METHOD"] == {
        "name": "VLLM_WORKER_MULTIPROC_METHOD",
        "type": "choice",
        "choices": ["spawn", "fork", "forkserver"],
        "default": "forkserver",
        "value": "forkserver",
        "source": "default",
        "description": "How the engine process is started.",
        "error": None,
    }


def test_env_shows_an_internal_variable_only_where_it_is_set(monkeypatch, capsys):
    monkeypatch.setenv("VCLI_PRELOAD_MODULE", "1")
    assert main(["doctor", "--env"]) == 0
    shown = capsys.readouterr().out
    assert "VCLI_PRELOAD_MODULE = 1\n" in shown
    assert "VCLI_START_FOLDER" not in shown
    assert "VLLM_ENGINE_READY_TIMEOUT_S = 600\n" in shown


@pytest.mark.parametrize("arguments", [["--env"], ["--env", "--json"], [], ["--json"]], ids=" ".join)
def test_secrets_are_never_shown(arguments, monkeypatch, capsys):
    for name in ("VLLM_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "tell-nobody")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:tell-nobody@mirror")
    assert main(["doctor", *arguments]) == 0
    captured = capsys.readouterr()
    assert "tell-nobody" not in captured.out + captured.err
    assert "VLLM_API_KEY" in captured.out


def test_env_shows_errors_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "thread")
    monkeypatch.setenv("VCLI_XYZZY", "1")
    assert main(["doctor", "--env"]) == 2
    captured = capsys.readouterr()
    assert "VLLM_WORKER_MULTIPROC_METHOD = thread" in captured.out
    assert captured.err.splitlines() == [
        "Error: VLLM_WORKER_MULTIPROC_METHOD must be one of spawn, fork, forkserver, got 'thread'",
        "Error: VCLI_XYZZY is not a variable of vllm-cli.",
    ]


def test_the_report_describes_the_machine(monkeypatch, capsys):
    from importlib.metadata import version

    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["machine"]
    assert facts["vllm-cli"] == VERSION
    assert facts["packages"]["torch"] == version("torch")
    assert facts["cpu"]["usable_cores"] >= 1
    assert facts["memory"]["total_bytes"] > facts["memory"]["available_bytes"] > 0
    assert facts["environment"]["VLLM_LOGGING_LEVEL"] == "INFO"


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
