"""Flags that the embedded engine ignores or rejects."""

import pytest

from vllm_cli.errors import InputError
from vllm_cli.flags.arguments import Arguments
from vllm_cli.flags.screening import notices, reject_unsupported
from vllm_cli.main import main

NEUTRAL = [
    "--tensor-parallel-size 1",
    "-pp=1",
    "--cpu-offload-gb 0.0",
    "--distributed-executor-backend mp",
    "--no-enable-tower-connector-lora",
    "--load-format safetensors",
    "--kv-cache-dtype auto",
    "--hf-overrides {}",
    "--quantization None",
    "--no-enforce-eager",
    "--optimization-level 2",
    "--enable-log-deltas",
]


@pytest.mark.parametrize("words", NEUTRAL)
def test_a_neutral_value_is_accepted_without_a_notice(words):
    flags = Arguments.parse(words.split()).flags.values()
    reject_unsupported(flags)
    assert list(notices(flags)) == []


@pytest.mark.parametrize(
    ("words", "notice"),
    [
        ("--enforce-eager", "--enforce-eager has no effect: torch and transformers choose the kernels."),
        ("--block-size 16", "--block-size 16 has no effect: the embedded scheduler"),
        ("-O3", "--optimization-level 3 has no effect"),
        ("--no-use-tqdm-on-load", "--no-use-tqdm-on-load has no effect"),
        ("--enable-chunked-prefill", "--enable-chunked-prefill has no effect"),
    ],
)
def test_an_ignored_flag_is_accepted_with_one_notice(words, notice):
    flags = Arguments.parse(words.split()).flags.values()
    reject_unsupported(flags)
    (line,) = notices(flags)
    assert line.startswith(notice)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tensor-parallel-size 2", "--tensor-parallel-size 2 requests several devices"),
        ("--lora-target-modules a b", "--lora-target-modules a b requests LoRA adapters"),
        ("-q awq", "--quantization awq requests quantized weights"),
        ("-sc.model x", "requests speculative"),
        ("--tool-server demo", "--tool-server demo requests parsers of tool calls"),
        ("--load-format dummy", "--load-format dummy requests another way of loading"),
        ("--otlp-traces-endpoint http://c:4318", "--otlp-traces-endpoint http://c:4318 requests traces"),
    ],
)
def test_a_rejected_flag_is_an_error_of_one_line_that_names_the_other_engine(words, message):
    with pytest.raises(InputError) as caught:
        reject_unsupported(Arguments.parse(words.split()).flags.values())
    assert message in caught.value.message
    assert "--engine vllm" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_all_rejected_flags_are_named_in_one_error():
    with pytest.raises(InputError, match="--tensor-parallel-size 4 .*; --grpc "):
        reject_unsupported(Arguments.parse(["-tp", "4", "--grpc"]).flags.values())


@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_share_of_gpu_memory_has_no_effect_without_a_gpu(has_gpu, tmp_path, monkeypatch):
    device = tmp_path / "device"
    if has_gpu:
        device.touch()
    monkeypatch.setattr("startup.engine.torch_environment._GPU_DEVICES", (device,))
    lines = list(notices(Arguments.parse(["--gpu-memory-utilization", "0.5"]).flags.values()))
    assert [line.startswith("--gpu-memory-utilization 0.5 has no effect: there is no GPU") for line in lines] == (
        [] if has_gpu else [True]
    )


def test_a_value_out_of_range_is_only_an_error(capsys, monkeypatch):
    monkeypatch.setattr("startup.engine.torch_environment._GPU_DEVICES", ())
    assert main(["serve", "m", "--gpu-memory-utilization", "5", "--enforce-eager"]) == 2
    assert capsys.readouterr().err == "Error: --gpu-memory-utilization must be above 0 and at most 1, got 5.0\n"


def test_serve_shows_notices_and_continues(parse, capsys, monkeypatch):
    monkeypatch.setenv("VCLI_XYZZY", "1")
    assert parse("m", "--enforce-eager").model.model == "m"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Notice: VCLI_XYZZY is not a variable of vllm-cli.",
        "Notice: --enforce-eager has no effect: torch and transformers choose the kernels.",
    ]
