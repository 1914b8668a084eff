"""Finds the first failure in logs of vLLM, in the forms of all versions and of programs that carry logs."""

import logging
import sys
import tracemalloc

import pytest

from startup.ground.logs.formatters import TextFormatter
from startup.ground.logs.json_lines import JsonFormatter
from startup.reports.causes import first_cause
from startup.reports.causes.digest import digest_to_dict, write_digest
from startup.reports.causes.first_cause import Cause, find_cause
from tests.support.growth import growth

_CORE = "(EngineCore_DP0 pid=40) ERROR 09-03 11:03:37 [core.py:712] "
_WORKER = "(Worker_TP1 pid=52) ERROR 09-03 11:03:36 [multiproc_executor.py:597] "
_API = "(APIServer pid=1) "
_READY = f"{_API}INFO:     Application startup complete."
_VERSION = f"{_API}INFO 09-03 11:03:00 [api_server.py:1351] vLLM API server version 0.32.0"
_SEE_ABOVE = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
_ENGINE_DEAD = (
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
    "See stack trace (above) for the root cause."
)

_FREE_MEMORY = (
    "ValueError: Free memory on device (1/8 GiB) on startup is less than desired GPU memory utilization (0.9, 7.2 GiB)."
)
_BACKGROUND = (
    "Exception: WorkerProc initialization failed due to an exception in a background process. "
    "See stack trace for root cause."
)
_DIED = "Engine core proc EngineCore_DP0 died unexpectedly"
_OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"
_NCCL = "torch.distributed.DistBackendError: NCCL error in: x.cpp:7, remote process exited"
_ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"
_TOO_LONG = "User-specified max_model_len (513) is greater than the derived max_model_len (512)."
_VALIDATION_ERROR = f"""\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, {_TOO_LONG} [type=value_error, input_value=ArgsKwargs(())]
    For further information visit https://errors.pydantic.dev"""
_GCC = "subprocess.CalledProcessError: Command '['/usr/bin/gcc', 'x.c']' returned non-zero exit status 1."
_NOT_INSPECTED = "ValueError: Model architectures ['X'] failed to be inspected. Please check the logs for more details."
_HEADS = "ValueError: Total number of attention heads (32) must be divisible by tensor parallel size (3)."


def _quoted(error: str) -> str:
    """The error that the engine core raises when a worker has reported an error."""
    return f"RuntimeError: Worker failed with error '{error}', please check the stack trace above for the root cause"


def _traceback(*functions: str, error: str) -> list[str]:
    frames = [line for name in functions for line in (f'  File "/x/vllm/{name}.py", line 7, in {name}', "    call()")]
    return ["Traceback (most recent call last):", *frames, *error.split("\n")]


def _log(prefix: str, lines: list[str]) -> list[str]:
    return [prefix + line for line in lines]


def _find(*parts: list[str] | str) -> Cause:
    cause = find_cause(line for part in parts for line in ([part] if isinstance(part, str) else part))
    assert cause is not None
    return cause


def _name(cause: Cause) -> str | None:
    return cause.known and cause.known.name


def test_an_exception_without_a_message_is_known_by_the_function_that_raised_it():
    damaged = _find(_traceback("create_model_config", "parse_safetensors_file_metadata", error="MemoryError"))
    assert (_name(damaged), _name(_find(_traceback("load", error="MemoryError")))) == (
        "weights-damaged",
        "host-out-of-memory",
    )


def test_an_exception_that_makes_the_server_stop_its_engine_comes_before_the_signal():
    label = "(APIServer pid=1) "
    again = [f"{label}Process APIServer:", *_log(label, _traceback("run_server", error="ValueError: no tokenizer"))]
    stopped = (
        "(EngineCore pid=2) INFO 09-03 11:03:37 [core.py:1454] [shutdown] EngineCore: trigger received signal=SIGTERM"
    )
    cause = _find(_log(label, _traceback("run_server", error="ValueError: no tokenizer")), stopped, again)
    assert cause.text == "ValueError: no tokenizer"


def test_the_engine_fails_and_the_server_only_says_so():
    cause = _find(
        _VERSION,
        _CORE + "EngineCore failed to start.",
        _log(_CORE, _traceback("run_engine_core", "init_device", error=_FREE_MEMORY)),
        _log(_CORE.partition("ERROR")[0], ["Process EngineCore_DP0:", *_traceback("run", error=_FREE_MEMORY)]),
        _log(_API, _traceback("wait_for_engine_startup", error=_SEE_ABOVE)),
    )
    assert _name(cause) == "gpu-memory-taken"
    assert cause.process == "EngineCore_DP0 pid=40"
    assert cause.phase == "while it prepared the device"
    assert cause.line == 8
    assert cause.text.startswith("ValueError: Free memory")


def test_the_phases_of_many_processes_go_on():
    loading, later = "INFO 09-03 11:03:36 [x.py:1] Starting to load model", "Available KV cache memory: 1 GiB"
    cause = _find(
        _log(_WORKER, [loading]),
        [f"(Worker pid={number}) {loading}" for number in range(1_000, 2_200)],
        _log(_WORKER, [f"INFO 09-03 11:03:37 [x.py:1] {later}", *_traceback("own", error="KeyError: 'x'")]),
    )
    assert cause.phase == "while it sized the KV cache"


def test_a_worker_fails_before_its_engine():
    cause = _find(
        _WORKER + "WorkerProc failed to start.",
        _log(_WORKER, _traceback("worker_main", "load_model", error="KeyError: 'layers.0.mlp.experts.w13_bias'")),
        _CORE + "EngineCore failed to start.",
        _log(_CORE, _traceback("run_engine_core", error=_BACKGROUND)),
        _log(_API, _traceback("main", error=_SEE_ABOVE)),
    )
    assert (_name(cause), cause.process) == ("weights-do-not-match", "Worker_TP1 pid=52")
    assert cause.phase == "while it loaded the model"


def test_lines_of_processes_alternate():
    first = _log(_WORKER, _traceback("load_model", error=_OUT_OF_MEMORY))
    other = _WORKER.replace("TP1 pid=52", "TP0 pid=51")
    second = _log(
        other,
        _traceback("load_model", error=_NCCL),
    )
    cause = _find(*[line for pair in zip(first, second, strict=True) for line in pair])
    assert (_name(cause), cause.process) == ("gpu-out-of-memory", "Worker_TP1 pid=52")


def test_the_first_rank_counts_and_what_follows_it_does_not():
    cause = _find(
        _WORKER + "WorkerProc hit an exception.",
        _log(_WORKER, _traceback("worker_busy_loop", "execute_model", error=f"RuntimeError: {_ILLEGAL_ACCESS}")),
        _CORE + "EngineCore encountered a fatal error.",
        _log(_CORE, _traceback("run_busy_loop", error=_quoted(_ILLEGAL_ACCESS))),
        _log(_CORE, _traceback("shutdown", error="AttributeError: 'NoneType' object has no attribute 'close'")),
        _log(_API, _traceback("output_handler", error=_ENGINE_DEAD)),
    )
    assert (_name(cause), cause.process) == ("illegal-memory-access", "Worker_TP1 pid=52")


def test_the_engine_quotes_a_worker_whose_own_lines_are_missing():
    cause = _find(_log(_CORE, _traceback("run", error=_quoted("LoRA rank 32 is greater than max_lora_rank 16."))))
    assert _name(cause) == "lora-rank"
    assert cause.text == "LoRA rank 32 is greater than max_lora_rank 16."


def test_a_direct_cause_explains_what_it_caused():
    cause = _find(
        _traceback("makedirs", error="PermissionError: [Errno 13] Permission denied: '/.cache'"),
        ["", "The above exception was the direct cause of the following exception:", ""],
        _traceback("main", error="OSError: the model cannot be loaded"),
    )
    assert _name(cause) == "folder-not-writable"
    assert "'/.cache'" in cause.text


def test_an_exception_while_another_one_is_handled_says_more():
    cause = _find(
        _traceback("from_pretrained", error="KeyError: 'new_model'"),
        ["", "During handling of the above exception, another exception occurred:", ""],
        _traceback("main", error="RuntimeError: this type of model is not known here"),
    )
    assert cause.known is None
    assert cause.text == "RuntimeError: this type of model is not known here"


def test_pydantics_message_is_in_its_second_line():
    cause = _find(_VERSION, _log(_API, _traceback("create_model_config", error=_VALIDATION_ERROR)))
    assert _name(cause) == "max-model-len-too-long"
    assert cause.text == _TOO_LONG
    assert cause.phase == "while it read its configuration"


@pytest.mark.parametrize("kind", ["", "Value error, "])
def test_pydantics_message_about_a_field_names_the_field(kind):
    message = f"  {kind}Input should be less than or equal to 1 [type=less_than_equal, input_value=1.5]"
    error = f"pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig\nshare\n{message}"
    cause = _find(_VERSION, _log(_API, _traceback("create_engine_config", error=error)))
    assert (_name(cause), cause.text) == (
        "configuration-refused",
        "share: Input should be less than or equal to 1",
    )


def test_an_unknown_cause_still_has_process_phase_and_exception():
    cause = _find(
        "(EngineCore_DP0 pid=40) INFO 09-03 11:03:30 [gpu_model_runner.py:2] Starting to load model x",
        _log(_CORE, _traceback("run_engine_core", error="RuntimeError: something odd")),
        _log(_API, _traceback("main", error=_SEE_ABOVE)),
    )
    assert cause.known is None
    assert write_digest(cause) == [
        "EngineCore_DP0 (pid 40) failed while it loaded the model.",
        "Cause: RuntimeError: something odd",
        "Do: Search the issues of vLLM for the message. Read the log around it (line 5). Try the newest release.",
        "Code: VC-UNKNOWN",
    ]


def test_an_error_of_the_code_is_named_so_if_nothing_else_is_known():
    error = "AttributeError: 'NoneType' object has no attribute 'seed'"
    assert _name(_find(_log(_CORE, _traceback("run_engine_core", error=error)))) == "error-in-code"
    cause = _find(
        _traceback("inspect", error=error),
        ["", "The above exception was the direct cause of the following exception:", ""],
        _traceback("main", error=_NOT_INSPECTED),
    )
    assert _name(cause) == "model-code-broken"


def test_an_exception_without_message_names_its_function():
    assert _find(_traceback("main", "split_heads", error="AssertionError")).text == "AssertionError in split_heads()"


def test_the_function_is_the_one_that_raised_the_exception():
    cause = _find(
        _traceback("warm_up", "all_reduce", error="AssertionError"),
        ["", "During handling of the above exception, another exception occurred:", ""],
        _traceback(
            "capture_end", error="RuntimeError: CUDA error: operation failed due to a previous error during capture"
        ),
    )
    assert cause.text == "AssertionError in all_reduce()"


def test_the_line_that_tells_most_is_quoted():
    error = """\
huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: 7)

Repository Not Found for url: https://huggingface.co/x/y/resolve/main/config.json.
Please make sure you specified the correct `repo_id`.
Invalid username or password."""
    cause = _find(_log(_API, _traceback("main", error=error)))
    assert _name(cause) == "model-not-found"
    assert cause.text == "Repository Not Found for url: https://huggingface.co/x/y/resolve/main/config.json."


def test_a_log_that_has_lost_its_indentation():
    lines = _traceback("run_engine_core", "load_model", error="KeyError: 'layers.0.mlp.experts.w13_bias'")
    lines[2:2] = ['File "/x/vllm/y.py", line 7, in f', "else:"]
    cause = _find(_log(_CORE, [line.lstrip() for line in lines]))
    assert (_name(cause), cause.phase) == ("weights-do-not-match", "while it loaded the model")


def test_an_exception_can_quote_the_traceback_of_another_process():
    quoted = _traceback("initialize", "load_model", error=_OUT_OF_MEMORY)
    cause = _find(
        "Traceback (most recent call last):",
        '  File "/x/ray/serve/replica.py", line 7, in initialize',
        "    raise RuntimeError(traceback.format_exc()) from None",
        f"RuntimeError: {quoted[0]}",
        quoted[1:],
    )
    assert _name(cause) == "gpu-out-of-memory"
    indented = _log(" " * 10, [f"RuntimeError: {quoted[0]}", *quoted[1:]])
    assert _name(_find(indented)) == "gpu-out-of-memory"


def test_an_import_that_fails_in_the_code_for_requests_ends_the_server():
    cause = _find(
        "Traceback (most recent call last):",
        '  File "/x/vllm/entrypoints/openai/serving_chat.py", line 7, in <module>',
        "    from jsonschema.protocols import Validator",
        "ModuleNotFoundError: No module named 'jsonschema.protocols'",
    )
    assert _name(cause) == "versions-do-not-fit"  # the package is there, and has no such module


def test_the_servers_own_output_handler_can_end_it():
    place = f"{_API}ERROR 09-03 11:03:37 [async_llm.py:524] "
    cause = _find(
        _READY,
        f"{place}AsyncLLM output_handler failed.",
        _log(place, _traceback("output_handler", error="IndexError: list index out of range")),
    )
    assert cause.text == "IndexError: list index out of range"


def test_the_compilers_message_tells_what_an_exception_does_not():
    cause = _find(
        "/tmp/x/cuda_utils.c:6:10: fatal error: Python.h: No such file or directory",
        _log(_CORE, _traceback("_build", error=_GCC)),
    )
    assert _name(cause) == "compiler-misses-files"
    assert "Python.h" in cause.text


def test_a_special_line_says_more_than_a_general_exception():
    lines = [
        "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:317, unhandled system error",
        "ncclSystemError: System call or external library call failed or device error.",
        "Last error:",
        "Error while creating shared memory segment /dev/shm/nccl-EoOvZr (size 7340384)",
    ]
    assert _name(_find(lines)) == "shm-too-small"
    assert _name(_find(lines[:2])) == "nccl-failed"


def test_the_models_code_is_imported_in_a_process_of_its_own():
    place = "ERROR 01-14 23:14:12 [registry.py:297] "
    cause = _find(
        _log(place, _traceback("_run_in_subprocess", error="RuntimeError: Error raised in subprocess:")),
        _log(place, _traceback("<module>", error="ModuleNotFoundError: No module named 'librosa'")),
        _traceback("main", error=_NOT_INSPECTED),
    )
    assert _name(cause) == "package-of-model-missing"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("vllm: error: unrecognized arguments: --reasoning-confg x", "unknown-argument"),
        ("Killed", "process-killed"),
        (f"{_API}ERROR 04-27 18:09:47 [core_client.py:600] {_DIED}, shutting down client.", "process-vanished"),
        ("Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.", "process-killed"),
        (_SEE_ABOVE.replace("{}", "{'EngineCore': -9}"), "process-killed"),
        (_SEE_ABOVE.replace("{}", "{'EngineCore_DP0': 1, 'EngineCore_DP1': -11}"), "native-crash"),
        ("Bus error (core dumped)", "shm-too-small"),
    ],
)
def test_lines_that_end_a_process_without_an_exception(line, name):
    assert _name(_find(_VERSION, line)) == name


def test_an_engine_that_hung_is_told_with_its_process_and_not_with_what_ended_then():
    lines = (
        "Process VllmWorker-0:",
        "Traceback (most recent call last):",
        '  File "/x/vllm/v1/worker/gpu_worker.py", line 9, in execute_model',
        "EngineHangError: it was silent for 300 s (--engine-watchdog-timeout): since 10:00:00, 4 requests run; "
        "VllmWorker-0 (pid 7) in all_reduce() of pynccl.py:3",
    )
    hung = _log("(VllmWorker-0 pid=7) ", list(lines))
    dead = f"{_API}ERROR 04-27 18:09:47 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore died"
    cause = _find(_VERSION, hung, "Killed", dead)
    assert (_name(cause), cause.process) == ("engine-hangs", "VllmWorker-0 pid=7")
    told = "the engine has been silent for 30 s: 4 requests run; it is ended after 300 s (--engine-watchdog-timeout)"
    assert find_cause([f"WARNING 04-27 18:09:47 (launcher) server.operation.engine_watchdog: {told}"]) is None


def test_the_digest_of_a_served_engine_that_hung_tells_it_again():
    """A router reads the digest in the log of its model's server, which has no stacks."""
    lines = [
        "INFO:     Application startup complete.",
        "Error: EngineCore (pid 7) failed while it served.",
        "Cause: the engine hung: EngineHangError: it was silent for 6 s (--engine-watchdog-timeout): since 01:35:21",
    ]
    cause = find_cause(lines)
    assert _name(cause) == "engine-hangs"
    assert cause.text.startswith("EngineHangError: it was silent")


def test_a_process_that_is_killed_because_another_one_failed_is_not_the_cause():
    cause = _find(_log(_WORKER, _traceback("x", error="RuntimeError: NCCL error: invalid usage")), "Killed")
    assert _name(cause) == "nccl-invalid-usage"


def test_of_lines_that_end_a_process_the_first_special_one_counts():
    vanished = f"{_API}ERROR 04-27 18:09:47 [core_client.py:600] {_DIED}, shutting down client."
    refused = "x: could not select device driver"
    assert _name(_find(_VERSION, vanished, refused, "server exited with code 137")) == "container-without-gpus"


def test_a_log_that_only_refers_to_the_cause():
    cause = _find(_log(_API, _traceback("main", error=_SEE_ABOVE)))
    assert _name(cause) == "cause-not-in-log"
    assert write_digest(cause)[0] == "APIServer (pid 1) failed."


_SIGTERM = f"{_API}INFO 08-21 10:24:34 [launcher.py:99] [shutdown] API server: trigger received signal=SIGTERM"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([_SIGTERM, *_log(_API, _traceback("output_handler", error=_ENGINE_DEAD))], id="SIGTERM"),
        pytest.param(
            [*_traceback("import_torch", error="KeyboardInterrupt"), *_log(_API, _traceback("main", error=_SEE_ABOVE))],
            id="Ctrl-C",
        ),
    ],
)
def test_a_server_that_was_stopped_did_not_fail(lines):
    cause = _find(_VERSION, lines)
    assert _name(cause) == "stopped"
    assert " was stopped" in write_digest(cause)[0]


_WARNING = "WARNING 08-29 11:56:16 [usage_lib.py:17] "
_REQUEST = f"{_API}ERROR 08-29 11:56:16 [serving_chat.py:251] "
_MIDDLEWARE = """\
ERROR:    Exception in ASGI application
Traceback (most recent call last):
  File "/x/starlette/applications.py", line 7, in __call__
ValueError: wrong"""


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([], id="nothing"),
        pytest.param([f"{_WARNING}ImportError('libcuda.so.1: cannot open shared object file')"], id="warning"),
        pytest.param(_log(_WARNING, _traceback("write", error="OSError: Read-only file system")), id="its traceback"),
        pytest.param(_log(_REQUEST, _traceback("create", error="ValueError: the prompt is too long")), id="request"),
        pytest.param(_MIDDLEWARE.split("\n"), id="request in the middleware"),
    ],
)
def test_a_server_that_goes_on_did_not_fail(lines):
    assert find_cause([_VERSION, *lines, _READY]) is None
    assert find_cause([_VERSION, _READY, *lines]) is None


def test_a_failure_of_the_embedded_engine():
    lines = [
        "INFO 09-03 11:03:30 (main) startup.session.session: Listening on 0.0.0.0:8000",
        "ERROR 09-03 11:03:37 (engine) server.engine.process: The engine failed",
        *_log("  ", _traceback("load", error="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB")),
        "Error: The engine ended with exit code 4.",
    ]
    assert _name(_find(lines)) == "gpu-out-of-memory"


@pytest.mark.parametrize("formatter", [TextFormatter("engine"), JsonFormatter("engine", None)], ids=["text", "JSON"])
def test_the_formats_of_our_own_logs(formatter):
    record = logging.LogRecord("server.engine.process", logging.ERROR, "process.py", 7, "The engine failed", None, None)
    try:
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
    except RuntimeError:
        record.exc_info = sys.exc_info()
    cause = _find(formatter.format(record).split("\n"))
    assert _name(cause) == "gpu-out-of-memory"


def test_a_message_of_the_command_line_is_the_cause_if_nothing_else_is():
    cause = _find(
        "INFO 09-03 11:03:30 (main) startup.session.session: Listening", "Error: 0.0.0.0:8000 is in use by pid 7."
    )
    assert cause.known is None
    assert cause.text == "Error: 0.0.0.0:8000 is in use by pid 7."


@pytest.mark.parametrize("begin", [_VERSION, f"{_API}INFO 11-22 16:33:06 [api_utils.py:347]  ▄▄ ▄█ █  version 0.32.0"])
def test_of_several_runs_the_last_one_counts(begin):
    failed = _log(_API, _traceback("main", error=_HEADS))
    later = _log(_API, _traceback("main", error="OSError: You are trying to access a gated repo."))
    assert _name(_find(begin, failed, begin, later)) == "gated-repo"
    assert find_cause([begin, *failed, begin, _READY]) is None
    assert _name(_find(begin, failed, begin)) == "not-divisible"


def test_secrets_and_control_characters_of_the_log_are_not_shown():
    cause = _find("vllm: error: unrecognized arguments: --api-key sesame --\x1b]0;titlex")
    assert "sesame" not in "".join(write_digest(cause))
    assert "sesame" not in str(digest_to_dict(cause))
    assert "\x1b" not in "".join(write_digest(cause))


def test_a_digest_has_at_most_four_lines():
    cause = _find("Killed")
    digest = write_digest(cause)
    assert len(digest) <= 4
    assert digest_to_dict(cause) | {"advice": None} == {
        "process": None,
        "phase": None,
        "code": "VC-PROCESS-KILLED",
        "cause": "process-killed",
        "title": cause.known and cause.known.title,
        "text": "Killed",
        "line": 1,
        "advice": None,
    }


@pytest.mark.alone
@pytest.mark.parametrize(
    "line",
    [
        pytest.param('(APIServer pid=1) INFO:     127.0.0.1:4 - "POST /v1/completions HTTP/1.1" 200 OK', id="requests"),
        pytest.param(_CORE + "ValueError: x", id="exceptions"),
        pytest.param(_CORE + "Traceback (most recent call last):", id="tracebacks"),
        pytest.param('  File "/x/y.py", line 7, in f', id="frames"),
        pytest.param("Killed", id="ends"),
        pytest.param("During handling of the above exception, another exception occurred:", id="links"),
        pytest.param(_VERSION, id="runs"),
        pytest.param('{"log": "error"}', id="json"),
    ],
)
def test_the_cost_is_linear_in_the_number_of_lines(line):
    assert growth(lambda lines: lambda: find_cause([line] * lines)) is None


@pytest.mark.alone
@pytest.mark.parametrize(
    "part", ["x", "[", "(", "(pid=1) ", "[0m", "| ", "error ", "a.", "1:", "ERROR 0", "]", " " * 9]
)
def test_the_cost_is_linear_in_the_length_of_a_line(part):
    assert growth(lambda size: lambda: find_cause(["Traceback (most recent call last):", part * size])) is None


def test_processes_without_end_take_bounded_memory():
    """Labels of processes and messages of exceptions come from the log, which may have any number of them."""
    texts = ("Traceback (most recent call last):", f"ValueError: {'x' * 2_000}")
    tracemalloc.start()
    cause = find_cause(f"(Worker pid={number}) {text}" for number in range(2_000) for text in texts)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cause is not None
    assert cause.process == "Worker pid=0"
    assert most < 8 << 20


_NO_BACKEND = (
    "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=576, "
    "kv_cache_dtype=auto, use_mla=True, has_sink={sink}, use_sparse=True). Reasons: {{{reasons}}}."
)


@pytest.mark.parametrize(
    ("sink", "reasons", "name"),
    [
        (False, "FLASHINFER: [kv_cache_dtype not supported]", "kv-cache-dtype-unsupported"),
        (False, "TRITON_MLA: [sparse not supported]", "attention-backend-missing"),
    ],
)
def test_the_reasons_of_attention_kernels_are_read(sink, reasons, name):
    assert _name(_find(_log(_CORE, _traceback("load", error=_NO_BACKEND.format(sink=sink, reasons=reasons))))) == name


def test_a_label_without_a_process_id_ends_the_exception_before_it():
    cause = _find(
        _log("(EngineCore) ", _traceback("init_device", error=_FREE_MEMORY)),
        "(APIServer) INFO 09-03 11:03:38 [utils.py:1] no more",
        _log(_API, _traceback("main", error=_SEE_ABOVE)),
    )
    assert (_name(cause), cause.process) == ("gpu-memory-taken", "EngineCore")


def test_the_last_line_of_torch_script_is_the_cause():
    error = f"""\
RuntimeError: The following operation failed in the TorchScript interpreter.
Traceback of TorchScript, serialized code (most recent call last):
  File "code/__torch__/m.py", line 7, in forward
    x = y
Traceback of TorchScript, original code (most recent call last):
{"  ..." + chr(10) * 1}RuntimeError: CUDA error: an illegal memory access was encountered"""
    cause = _find(_log(_CORE, _traceback("forward", error=error)))
    assert (_name(cause), cause.text) == ("illegal-memory-access", f"RuntimeError: {_ILLEGAL_ACCESS}")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (f"Value error, {_TOO_LONG}", "max-model-len-too-long"),
        (" Value error, Model architectures ['X'] are not supported for now.", "architecture-unsupported"),
        ("ptxas fatal   : Value 'sm_121a' is unknown", "ptxas-too-old"),
        ("x.y.EngineDeadError: EngineCore encountered an issue.", "cause-not-in-log"),
        ("PTXASError", "ptxas-too-old"),
    ],
)
def test_a_pasted_line_names_a_cause(line, name):
    cause = _find(line)
    assert _name(cause) == name
    assert len(write_digest(cause)) <= 4


def test_a_line_that_names_a_cause_counts_only_if_nothing_was_ready():
    assert find_cause([_VERSION, "ptxas fatal   : Value 'sm_121a' is unknown", _READY]) is None
    assert find_cause(["WARNING 09-03 11:03:37 [x.py:1] ptxas fatal"]) is None


def test_a_record_of_loki_has_its_text_in_line():
    assert (
        _name(_find('{"line": "torch.OutOfMemoryError: CUDA out of memory", "labels": {"pod": "a"}}'))
        == "gpu-out-of-memory"
    )


def test_all_lines_of_an_excerpt_are_read_and_of_a_long_log_those_that_look_like_errors():
    sentence = "The NVIDIA driver on your system is too old (found version 12080)"
    cause = _find("we see:", sentence)
    assert (_name(cause), cause.line, cause.is_mention) == ("driver-too-old", 2, True)
    assert find_cause(["we see:"] * 600 + [sentence]) is None
    assert _name(_find("we see a CUDA error:", sentence)) == "driver-too-old"


def test_the_line_of_the_all_reduce_says_more_than_the_end_of_its_worker():
    failed = "Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:164 'invalid argument'"
    assert (
        _name(_find(failed, f"{_API}ERROR 09-03 11:03:37 [x.py:1] {_DIED}", "Failed: ")) == "custom-all-reduce-failed"
    )


def test_without_a_platform_the_exception_says_more():
    line = "INFO 05-20 20:12:25 [__init__.py:252] No platform detected, vLLM is running on UnspecifiedPlatform"
    assert _name(_find(line)) == "no-platform"
    assert _name(_find(line, _traceback("serve", error="RuntimeError: Failed to infer device type"))) == "no-device"


def test_a_gated_repository_says_more_than_the_status_of_its_answer():
    answer = _traceback(
        "get", error="requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://h/x"
    )
    cause = "The above exception was the direct cause of the following exception:"
    assert _name(_find(answer)) == "hub-unauthorized"
    refused = _traceback("load", error="OSError: You are trying to access a gated repo.")
    assert _name(_find(answer, "", cause, "", refused)) == "gated-repo"


_AOT = "(EngineCore_DP0 pid=40) INFO 09-03 11:03:30 [decorators.py:320] Directly load AOT compilation from path /a/b"


def test_an_operator_that_a_loaded_compiled_model_lacks_is_a_matter_of_the_cache():
    lacks = _log(
        _CORE, _traceback("forward", error="AttributeError: '_OpNamespace' 'vllm' object has no attribute 'x'")
    )
    assert _name(_find(_AOT, lacks)) == "compile-cache-damaged"
    assert _name(_find(lacks)) == "error-in-code"
    assert _name(_find(_AOT, _log(_CORE, _traceback("forward", error="AssertionError: x")))) == "error-in-code"


def test_the_tools_for_hip_errors_are_those_of_amd():
    cause = _find(_log(_CORE, _traceback("load", error="torch.AcceleratorError: HIP error: invalid argument")))
    assert "rocm-smi" in write_digest(cause)[2]
    assert "AMD_SERIALIZE_KERNEL=3" in digest_to_dict(cause)["advice"]


def test_a_line_that_names_a_cause_says_more_than_that_the_cause_is_elsewhere():
    cause = _find("The NVIDIA driver on your system is too old", _log(_API, _traceback("main", error=_SEE_ABOVE)))
    assert _name(cause) == "driver-too-old"


@pytest.mark.parametrize(
    ("functions", "source", "name"),
    [
        ("determine_available_memory", "y = x.max()", "error-in-code"),
        ("execute_model", "raise ValueError(", "error-in-code"),
        ("determine_available_memory", "raise ValueError(", None),
        ("load_model", "y = x.max()", None),
    ],
)
def test_a_computation_that_fails_is_a_fault_of_the_code_and_a_check_that_raises_is_not(functions, source, name):
    lines = _traceback("call", functions, error="ValueError: zero-size array to reduction operation")
    lines[-2] = f"    {source}"
    assert _name(_find(_log(_WORKER, ["WorkerProc hit an exception.", *lines]))) == name


def test_a_function_of_torch_that_a_compiled_library_calls_tells_its_error_in_another_line():
    error = 'RuntimeError: torch_call_dispatcher( "aten::new_empty", "") API call failed at /x.h, line 7'
    lines = _log(_WORKER, ["WorkerProc hit an exception.", *_traceback("execute_model", error=error)])
    assert _name(_find(lines, _log(_CORE, _traceback("step", error="KeyError: 'x'")))) == "cause-not-in-log"
    told = "[rank1]:[E716 19:47:26.324586583 shim_common.cpp:523] Exception in aoti_torch: CUDA out of memory. x"
    assert _name(_find([*lines, told])) == "gpu-out-of-memory"


def test_frames_and_warnings_of_cpp_are_no_errors():
    c10d = "[rank4]:[W505 10:20:54.770055095 TCPStore.cpp:125] [c10d] recvValue failed, remote: Failed to recv"
    frame = "frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x9d (0x14 in /x/libc10.so)"
    assert (
        find_cause([c10d, "Exception raised from recvBytes at /x/Utils.hpp:682 (most recent call first):", frame])
        is None
    )


def test_a_message_that_was_wrapped_has_no_label():
    first = f"{_API}pydantic_core._pydantic_core.ValidationError:"
    told = [
        "  1 validation error for ModelConfig",
        "  Value error, x max_model_len (131072) is greater than the derived",
    ]
    assert _name(_find(first, told, "  max_model_len (32768).")) == "max-model-len-too-long"


def test_what_a_worker_reports_is_a_fault_of_the_code_and_may_be_wrapped():
    assert (
        _name(_find("(EngineCore) ERROR [core.py:7] RuntimeError: Worker failed with error", "    'page x != y'"))
        == "error-in-code"
    )
    assert _name(_find("WorkerProc hit an exception. RuntimeError: CUDA error: out of memory")) == "gpu-out-of-memory"


def test_the_code_that_torch_script_quotes_is_no_message():
    first = "RuntimeError: The following operation failed in the TorchScript interpreter."
    code = ["Traceback of TorchScript, original code (most recent call last):", "class Model(Module):", "  __x__ = []"]
    cause = _find(_log(_CORE, [*_traceback("execute_model", error=first), *code, "RuntimeError: Failed to execute: x"]))
    assert cause.text == "RuntimeError: Failed to execute: x"


def test_a_quoted_exception_without_message_refers_to_the_workers_log():
    assert (
        _name(_find(_log(_CORE, _traceback("get_response", error=_quoted("AssertionError: "))))) == "cause-not-in-log"
    )


def test_source_code_without_indentation_names_no_cause():
    assert find_cause(["class RepositoryNotFoundError(HubError):", "raise GatedRepoError("]) is None
    cause = _find("Traceback (most recent call last):", 'File "/x/y.py", line 7, in f', "class OutOfMemoryError(E):")
    assert _name(cause) == "cause-not-in-log"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(_log(_CORE, _traceback("load_model", error="x")[:-1]), id="end"),
        pytest.param(_traceback("run", "load_model", error="x")[3:-1], id="both ends"),
    ],
)
def test_of_a_traceback_that_is_cut_the_phase_is_known(lines):
    cause = _find(_VERSION, lines)
    assert (_name(cause), cause.phase) == ("cause-not-in-log", "while it loaded the model")
    assert "load_model" in cause.text
    assert find_cause([_VERSION, *lines, _READY]) is None


_LLAMA_FAILED = ("llama_model_load_from_file_impl: failed to load model", "main: exiting due to model loading error")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", "llama-out-of-memory"),
        ("llama_model_load: error loading model: unknown model architecture: 'x'", "llama-model-unknown"),
        ("ggml_metal_buffer_init: error: failed to allocate buffer, size = 2 MiB", "llama-out-of-memory"),
        ("llama_model_load: error loading model: error loading model vocabulary: x", "llama-model-unknown"),
        ("", "llama-load-failed"),
        ("x.cpp:7: GGML_ASSERT(x) failed", "llama-failed"),
    ],
)
def test_the_errors_of_llama_server(line, name):
    cause = _find("main: loading model", line, *_LLAMA_FAILED)
    assert _name(cause) == name
    assert write_digest(cause)[0].startswith("The server failed")


def test_a_message_of_an_error_that_nobody_knows_is_shown():
    cause = _find("srv   init: starting", "srv   init: failed to do what nobody knows", "bye")
    assert (cause.line, cause.known, cause.is_mention) == (2, None, True)
    assert write_digest(cause)[0].startswith("Line 2 is the message of an error")


_RAISED = r"""
transformers-too-new: load > transformers.x.AmbiguousGlobalPerLayerAttributeError:\n'head_dim' is a per-layer
  attribute and may vary
flashinfer-failed: load > tvm.error.InternalError: Check failed:
  (status == cudaSuccess) is false:\n  BatchPrefillWithPagedKVCache failed with error invalid argument
versions-do-not-fit: load > TypeError: type 'array.array' is not subscriptable
no-room-for-kv-cache: load > ValueError: No available memory for the cac\nhe blocks.
nvcc-too-old: load > RuntimeError: FlashInfer requires GPUs with sm75 or higher
setting-refused: load > AssertionError: Please set VLLM_X=0 with this model
setting-refused: load > NotImplementedError: x is not possible. Use --no-y.
setting-refused: load > ValueError: x needs y. Please disable prefix caching.
setting-refused: load > ValueError: x is not supported with y.
setting-refused: load > RuntimeError: x requires y
error-in-code: load > AssertionError: x requires y
setting-refused: load > NotImplementedError: x is not supported
weights-do-not-match: load > KeyError: 'mtp.0.head.weight'
nccl-failed: load > torch._dynamo.exc.BackendCompilerFailed: backend='x' raised:\nDistBackendError: NCCL error: x
compilation-failed: load > torch._dynamo.exc.BackendCompilerFailed: backend='x' raised:\nAssertionError: x
process-killed: load > subprocess.CalledProcessError: Command 'gcc x.c' died with <Signals.SIGKILL: 9>.
weights-do-not-match: load_model load_weights > KeyError: 'blocks.0.qkv.weight'
weights-do-not-match: load_model weight_loader > AssertionError
error-in-code: load_model forward > KeyError: 'blocks'
configuration-refused: vllm/config/model > ValueError: x and y do not go together
lora-failed: vllm/lora/model > ValueError: x
lora-missing: vllm/lora/model > ValueError: Loading lora x failed: No adapter found for /x
lora-missing: vllm/lora/model > FileNotFoundError: [Errno 2] No such file or directory: 'x/adapter_config.json'
versions-do-not-fit: f > ModuleNotFoundError: No module named 'vllm._C_x'
not-divisible: load_model divide > AssertionError: 9 is not divisible by 2
error-in-code: f > NotImplementedError: Layer x: page size is not divisible by the maximum page size
setting-refused: x/quantization/y > ValueError: no kernel.\nplease set VLLM_X=1.
setting-refused: f > AssertionError: x expects backend to be one of ['a', 'b'], but got c
no-compiler: f > x.InductorError: BackendCompilerFailed: raised: No such file or directory: 'gcc'
transformers-failed: transformers/tokens > AttributeError: 'list' object has no attribute 'keys'
attention-failed: vllm/v1/attention/backends/x > AssertionError
kv-connector-failed: x/kv_transfer/y > AssertionError: x
gpu-error: x/kv_transfer/y > RuntimeError: CUDA error: x
quantization-failed: x/quantization/y > ValueError: x
model-failed: vllm/model_executor/models/x > ValueError: x
speculative-decoding-failed: x/spec_decode/y > KeyError: 1
structured-outputs-failed: x/structured_output/y > ValueError: x
kernel-build-failed: flashinfer/jit > RuntimeError: Ninja build failed. Ninja output:
libraries-do-not-fit: forward > AttributeError: '_OpNamespace' '_C_x' object has no attribute 'y'
versions-do-not-fit: f > TypeError: f() got an unexpected keyword argument 'x'
no-kernel-for-this-gpu: f > NotImplementedError: No compiled x for CUDA device capability: 120.
error-in-code: f > RuntimeError: expected mat1 and mat2 to have the same dtype
not-spawnable: f > FileNotFoundError: [Errno 2] No such file or directory: '/x/<stdin>'
gpu-out-of-memory: f > RuntimeError: CUDA driver error: out of memory
graph-capture-failed: f > torch.AcceleratorError: CUDA error: operation not permitted when stream is capturing
graph-capture-failed: f > RuntimeError: HIP error: operation not permitted when stream is capturing
graph-capture-failed: f > RuntimeError: CUDA error: operation would make the legacy stream depend on a capturing
  blocking stream
compiler-failed: f > x.InductorError: CalledProcessError: Command '['g++', 'x.cpp']' returned non-zero exit status 1.
compiler-failed: f > x.BackendCompilerFailed: backend='x' raised:\nCalledProcessError: Command '['/x/clang', 'y']'
kernel-build-failed: f > subprocess.CalledProcessError: Command '['/x/bin/nvcc', 'y.cu']' returned 1.
error-in-code: f > torch._dynamo.exc.TorchRuntimeError: RuntimeError when making fake tensor call
error-in-code: f > RuntimeError: a and b must have same reduction dim, but got [s4, 3840] X [5632, 1024].
kv-connector-failed: _update_from_kv_xfer_finished > AssertionError
kv-connector-failed: f > AssertionError: External KV connector is not verified yet
moe-failed: vllm/model_executor/layers/fused_moe/x > RuntimeError: Error in function 'x': Got CUDA error
gguf-unsupported: f > OSError: It looks like the config file at '/m/a.gguf' is not a valid JSON file.
gguf-unsupported: f > ValueError: Invalid repository ID or local directory specified: '/m/a.gguf'.
gguf-unsupported: f > HFValidationError: Repo id must be in the form 'namespace/repo_name': 't/M-GGUF:Q4_K_M'.
weights-damaged: f > OSError: It looks like the config file at '/m/config.json' is not a valid JSON file.
ptx-too-new: f > RuntimeError: CUDA error: cudaErrorUnsupportedPtxVersion
weights-damaged: f > ValidationError: 1 validation error for ModelConfig\n  Value error, Expecting value: line 1
  column 1 (char 0)
"""
"""Each cause with the functions of a traceback and its error. The error continues in an indented line.

Errors that only one known text matches are not here. `test_known_causes.py` has all texts.
"""


@pytest.mark.parametrize("text", _RAISED.replace("\n  ", " ").strip().split("\n"))
def test_the_function_the_file_and_the_error_of_an_exception_tell_its_cause(text):
    name, _, raised = text.partition(": ")
    functions, _, error = raised.partition(" > ")
    lines = _traceback(*functions.split(), error=error.replace("\\n", "\n"))
    assert _name(_find(_log(_CORE, lines))) == name


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (f"/usr/bin/ld: cannot find -lcuda: No such file or directory|{_GCC}", "compiler-misses-files"),
        (f"{_CORE}Search for `cudaErrorStreamCaptureUnsupported' in https://x", "graph-capture-failed"),
        ("x/ggml-cuda.cu:100: CUDA error|CUDA error: out of memory|  current device: 0", "gpu-out-of-memory"),
        (
            "x: status 1:|ggml_aligned_malloc: insufficient memory (attempted to allocate 36000.00 MB)",
            "host-out-of-memory",
        ),
        ("llama-server: error while loading shared libraries: libcuda.so.1: cannot open", "no-device"),
        ("AttributeError: '_C' object has no attribute 'rms_norm'", "libraries-do-not-fit"),
        (
            "No platform detected, vLLM is running on UnspecifiedPlatform|x: UserWarning: Error 803: x",
            "cuda-compat-in-the-way",
        ),
        ("common: init|/x/ggml/src/ggml-impl.h:319: fatal error", "llama-failed"),
        ("RuntimeError: CUDA error: OS call failed or operation not supported on this OS", "no-pinned-memory"),
        (
            f"{_CORE}Search for `cudaErrorAssert' in https://x|{_API}Traceback (most recent call last):",
            "illegal-memory-access",
        ),
        ("Failed to start: None|x: failed: TypeError: f() got an x", "error-in-code"),
    ],
)
def test_lines_around_an_end_tell_its_cause(lines, name):
    assert _name(_find(lines.split("|"))) == name


_ROOM = "GPU KV cache size: 63,632 tokens"
_NO_ROOM = "ValueError: No available memory for the cache blocks."


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("EngineCore_DP0 pid=40", "EngineCore_DP0 pid=90", "kv-cache-beside-another"),
        ("EngineCore pid=40", "EngineCore pid=41", "kv-cache-beside-another"),
        ("EngineCore_DP0 pid=40", "EngineCore_DP1 pid=41", "no-room-for-kv-cache"),
        ("EngineCore_DP0 pid=40", "EngineCore_DP0 pid=40", "no-room-for-kv-cache"),
    ],
)
def test_a_kv_cache_without_room_beside_another_engine_of_the_log(first, second, name):
    engine = f"({first}) INFO 09-03 11:03:30 [kv_cache_utils.py:1087] {_ROOM}"
    failed = _log(f"({second}) ERROR 09-03 11:03:37 [core.py:712] ", _traceback("run_engine_core", error=_NO_ROOM))
    assert _name(_find(engine, failed)) == name


def test_a_kv_cache_without_room_beside_a_server_that_this_log_shows_ready():
    """`docker compose logs` shows two servers in one log. A server that has ended uses no memory."""
    failed = _log(_CORE, _traceback("run_engine_core", error=_NO_ROOM))
    assert _name(_find(_VERSION, _READY, _VERSION, failed)) == "kv-cache-beside-another"
    assert _name(_find(_VERSION, _READY, _SIGTERM, _VERSION, failed)) == "no-room-for-kv-cache"
    assert _name(_find(_VERSION, _VERSION, failed)) == "no-room-for-kv-cache"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("ValueError: --kv-cache-dtype fp8 is not supported with x.", "Change --kv-cache-dtype as"),
        ("AssertionError: Please set VLLM_X_Y=0 with this model", "Change VLLM_X_Y as"),
        ("ValueError: max_num_seqs (4) must be at least 8", "Change max_num_seqs as"),
        ("ValueError: x is not supported with y.", "Search vLLM's issues for the message"),
        ("ValueError: this model requires dual_chunk_attention", "Search vLLM's issues for the message"),
    ],
)
def test_a_refusal_names_a_flag_variable_or_option_only_if_its_text_does(error, told):
    cause = _find(_log(_CORE, _traceback("load", error=error)))
    assert _name(cause) == "setting-refused"
    assert write_digest(cause)[2].startswith(f"Do: {told}")


@pytest.mark.parametrize(
    ("file", "where"),
    [
        ("/x/site-packages/vllm/y.py", "vLLM"),
        ("/x/dist-packages/torch/y.py", "vLLM and torch"),
        ("/x/site-packages/aiter/ops/y.py", "vLLM and aiter"),
        ("/x/y.py", "vLLM"),
    ],
)
def test_the_line_of_an_unknown_error_is_searched_where_it_comes_from(file, where):
    frame = f'  File "{file}", line 7, in f'
    cause = _find(_log(_CORE, ["Traceback (most recent call last):", frame, "    call()", "RuntimeError: odd"]))
    assert (cause.known, cause.text) == (None, "RuntimeError: odd")
    assert f"Do: Search the issues of {where} for the message." in write_digest(cause)[2]


@pytest.mark.parametrize(
    "line",
    [
        "ROCm error: an illegal memory access was encountered",
        "Memory access fault by GPU node-1 (Agent handle: 0x5) on address 0x7. Reason: Page not present.",
        "CUDA error: device-side assert triggered",
    ],
)
@pytest.mark.parametrize("begin", ["slot update_slots: id  3", "llama_context: n_ctx = 1", "x/ggml-cuda.cu:7: y"])
def test_flags_of_vllm_are_no_remedy_for_llama_cpp(begin, line):
    cause = _find(begin, line)
    assert _name(cause) == "illegal-memory-access"
    assert "newest llama.cpp" in write_digest(cause)[2]
    assert "--" not in write_digest(cause)[2]
    assert "--enforce-eager" in write_digest(_find(line))[2]


def test_of_a_compilers_output_the_error_is_quoted():
    error = "RuntimeError: Ninja build failed. Ninja output:\n[1/2] nvcc x.cu\nx.cu(7): error: no y\nninja: stopped"
    assert _find(_log(_CORE, _traceback("f", error=error))).text == "x.cu(7): error: no y"


def test_what_ends_an_engine_that_serves_is_a_fault_of_its_code():
    failed = _log(_CORE, _traceback("schedule", error="ValueError: x"))
    assert _name(_find(_CORE + "EngineCore failed to start.", failed)) is None
    assert _name(_find(_CORE + "EngineCore encountered a fatal error.", failed)) == "error-in-code"
    assert (
        _name(_find(_READY, _log(_CORE, _traceback("run_engine_core", "step", error="x")[:-1]))) == "cause-not-in-log"
    )


def test_a_request_whose_traceback_is_cut_is_all_that_this_log_has():
    request = _log(_REQUEST.replace("251", "997"), _traceback("get", "create", error="x")[1:-1])
    assert _name(_find(request)) == "cause-not-in-log"
    assert find_cause([_READY, *request]) is None
    assert find_cause(_log(_WARNING, _traceback("write", error="x")[:-1])) is None


def test_a_log_without_line_ends():
    lines = _log(_CORE, _traceback("run_engine_core", "load_model", error=_FREE_MEMORY))
    cause = _find(" ".join([_CORE + "EngineCore failed to start.", *lines]))
    assert (_name(cause), cause.process) == ("gpu-memory-taken", "EngineCore_DP0 pid=40")
    assert cause.phase == "while it loaded the model"


def test_the_line_that_a_message_continues_in_names_its_cause():
    cause = _find(
        f"{_API}ValueError: The prompt contains an image with",
        "length 6105, which exceeds the pre-allocated encoder cache size 6084.",
        f"{_CORE}EngineCore encountered a fatal error.",
    )
    assert _name(cause) == "encoder-cache-too-small"


def test_that_an_engine_failed_is_said_if_nothing_else_is_known():
    assert _name(_find("ERROR EngineCore encountered a fatal error. ERROR Traceback (most recent call last): x")) == (
        "cause-not-in-log"
    )
    vanished = _log(_CORE, ["EngineCore failed to start.", _DIED])
    assert _name(_find(vanished, _log(_CORE, _traceback("f", error=_quoted(""))))) == "process-vanished"


def test_the_line_that_points_to_documentation_is_not_quoted():
    error = f"torch.AcceleratorError: {_ILLEGAL_ACCESS}\nSearch for `cudaErrorIllegalAddress' in https://x"
    assert _find(_log(_CORE, _traceback("f", error=error))).text == f"torch.AcceleratorError: {_ILLEGAL_ACCESS}"


def test_states_of_a_progress_bar_cost_no_more_than_lines(monkeypatch):
    """A progress bar's states count as one line. Only a log's first lines have the more expensive search."""
    costs = []
    match = first_cause._match
    for end in ("\r", ""):
        calls: list[str] = []
        monkeypatch.setattr(
            first_cause, "_match", lambda line, causes, calls=calls: calls.append("") or match(line, causes)
        )
        assert find_cause(f"Loading: {percent} %{end}" for percent in range(3000)) is None
        costs.append(len(calls))
    assert costs[0] == costs[1]
