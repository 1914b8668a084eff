"""After signals, killed processes or a hung GPU, a server ends with the right code and leaves nothing."""

import json
import re
import signal

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer, run_preflight
from tests.support.http_client import StreamReader
from tests.support.waiting import assert_gone

_END_S = 30.0
_HUNG_S = 20.0


def test_a_gpu_that_hangs_ends_the_server(home, tmp_path):
    hanging = tmp_path / "hang"
    arguments = (*EAGER, "--engine-watchdog-timeout", f"{_HUNG_S:g}")
    with GpuServer("ours", *arguments, folder=home, environment={"STUB_FAIL": str(hanging)}) as server:
        family = server.wait_ready().family()
        stream = StreamReader(server.url, 1800)
        hanging.write_text("0 sync 1 hang")
        assert server.process.wait(_HUNG_S + _END_S) == 1
        *_, last, end = stream.finish()
        assert "The engine hangs" in last["error"]["message"]
        assert end is None
        assert_gone(family)
    assert "EngineHangError" in server.log


def test_a_failing_gpu_ends_the_server(home, tmp_path):
    fail = tmp_path / "fail"
    with GpuServer("ours", *EAGER, folder=home, environment={"STUB_FAIL": str(fail)}) as server:
        assert server.wait_ready().generate()
        fail.write_text("0 sync 1 700!")
        server.ask("/v1/completions", {"prompt": "a", "max_tokens": 4})
        assert server.process.wait(_END_S) == 1
    assert "illegal memory access" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("line", ["non-default args", "KV cache size"])
def test_a_stopped_start_leaves_nothing(home, line, number):
    """`tests/vllm_engine/test_stops.py` has more phases."""
    with GpuServer("ours", *EAGER, folder=home) as server:
        server.wait_logged(line)
        family = server.family()
        server.process.send_signal(number)
        assert server.process.wait(_END_S) in (-number, 128 + number)
        assert_gone(family)


_LENGTH = 131072
_SILENT_S = 10.0
_LAUNCH_US = 1500
"""The time of a kernel launch, with which a step takes about half a second. Half of the steps take 16 s."""
_STEPS = re.compile(r"^vllm:iteration_tokens_total_count\S* ([\d.]+)$", re.M)
_CHUNK = 2048
_NUM_CHUNKS = _LENGTH // _CHUNK
"""Also the number of requested tokens, because without kernels each chunk of the prefill yields a token."""
_LONG_WORDS = (
    "--enforce-eager",
    "--max-model-len",
    str(_LENGTH),
    "--hf-overrides",
    json.dumps({"max_position_embeddings": _LENGTH}),
    "--max-num-batched-tokens",
    str(_CHUNK),
    "--engine-watchdog-timeout",
    f"{_SILENT_S:g}",
)


def test_a_prefill_longer_than_the_watchdogs_timeout_goes_on(home):
    """The engine answers the watchdog after each step, even if the whole prefill takes long on a slow GPU."""
    environment = {"STUB_LAUNCH_US": str(_LAUNCH_US)}
    with GpuServer("ours", *_LONG_WORDS, folder=home, environment=environment) as server:
        server.wait_ready()
        prompt = [1000 + number % 1000 for number in range(_LENGTH - _NUM_CHUNKS)]
        answer = server.post("/v1/completions", prompt=prompt, max_tokens=_NUM_CHUNKS, ignore_eos=True)
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert sum(map(float, _STEPS.findall(server.text("/metrics")))) > _NUM_CHUNKS // 2
        assert server.health() == 200
        assert server.terminate(signal.SIGTERM) == 0
    assert "it was silent for" not in server.log


_TP3 = ("--tensor-parallel-size", "3")
_MIG = "MIG-00000000-0000-0000-0000-000000000000"
_NO_DEVICE = "Failed to infer device type"
_TOO_OLD = "The NVIDIA driver on your system is too old"


@pytest.mark.ci_vllm
@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        pytest.param(_TP3, {"STUB_GPUS": "3"}, "", id="three GPUs"),
        pytest.param((), {"STUB_DRIVER": "old"}, "12.4", id="driver too old"),
    ],
)
def test_a_start_that_fits_is_accepted_and_another_one_refused(tmp_path, arguments, variables, told):
    """`tests/startup/vllm_arguments/preflight/test_devices.py` has what else a driver reports."""
    done = run_preflight(tmp_path, *arguments, **variables)
    assert done.returncode == (3 if told else 0), done.stdout + done.stderr
    assert told in done.stdout + done.stderr


@pytest.mark.ci_vllm
def test_a_start_without_its_gpus_ends_at_once_with_one_line(tmp_path):
    with GpuServer("ours", *EAGER, *_TP3, folder=tmp_path, environment={"STUB_GPUS": "1"}) as server:
        assert server.process.wait(60) == 3
    assert "non-default args" not in server.log, "vLLM has not begun"
    assert server.log.count("need 3 GPUs on this node, and 1 can be used") == 1
    assert len([line for line in server.log.splitlines() if "GPU" in line]) == 1, server.log


@pytest.mark.parametrize(
    ("environment", "reason", "code"),
    [
        pytest.param({"STUB_GPUS": "0"}, _NO_DEVICE, "VC-NO-DEVICE", id="no GPU"),
        pytest.param({"STUB_DRIVER": "not-loaded"}, _NO_DEVICE, "VC-NO-DEVICE", id="driver not loaded"),
        pytest.param({"STUB_DRIVER": "old"}, _TOO_OLD, "VC-DRIVER-TOO-OLD", id="driver too old"),
        pytest.param({"STUB_MIG": "1", "CUDA_VISIBLE_DEVICES": _MIG}, "NVMLError_NotFound", "", id="unknown MIG"),
    ],
)
def test_a_start_past_the_preflight_fails_with_the_reason_of_vllm(home, environment, reason, code):
    warn = () if "STUB_MIG" in environment else ("--preflight", "warn")
    for launcher, arguments, status in (("plain", (), 1), ("ours", warn, 3)):
        with GpuServer(launcher, *EAGER, *arguments, folder=home, environment=environment) as server:
            server.wait(lambda server=server: server.process.poll() is not None)
            assert server.process.returncode == status
        assert reason in server.log
    [told] = [line for line in server.log.splitlines() if line.startswith("Cause: ")]
    if code:
        assert f"RuntimeError: {reason}" in told
        assert f"Code: {code}" in server.log.splitlines()
    else:
        assert _MIG in told
        assert "CUDA_VISIBLE_DEVICES" in told
