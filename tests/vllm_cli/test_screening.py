"""Flags that the embedded engine does not honour."""

import pytest

from vllm_cli.errors import InputError
from vllm_cli.serve.arguments import Arguments
from vllm_cli.serve.screening import notices, refuse_impossible

HARMLESS = [
    "--tensor-parallel-size 1",
    "-pp=1",
    "--cpu-offload-gb 0.0",
    "--distributed-executor-backend mp",
    "--no-enable-lora",
    "--load-format safetensors",
    "--kv-cache-dtype auto",
    "--hf-overrides {}",
    "--quantization None",
    "--no-enforce-eager",
    "--optimization-level 2",
    "--enable-log-deltas",
]


@pytest.mark.parametrize("words", HARMLESS)
def test_a_harmless_value_is_accepted_silently(words: str) -> None:
    flags = Arguments.parse(words.split()).flags.values()
    refuse_impossible(flags)
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
def test_a_hint_is_accepted_with_one_line(words: str, notice: str) -> None:
    flags = Arguments.parse(words.split()).flags.values()
    refuse_impossible(flags)
    (line,) = notices(flags)
    assert line.startswith(notice)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        ("--tensor-parallel-size 2", "--tensor-parallel-size 2 asks for several devices"),
        ("--lora-modules a=b c=d", "--lora-modules a=b c=d asks for LoRA adapters"),
        ("-q awq", "--quantization awq asks for quantized weights"),
        ("-sc.model x", "asks for speculative"),
        ("--enable-auto-tool-choice", "--enable-auto-tool-choice asks for parsers of tool calls"),
        ("--load-format dummy", "--load-format dummy asks for another way of loading"),
    ],
)
def test_the_impossible_is_refused_in_one_line_that_names_the_other_engine(words: str, request_: str) -> None:
    with pytest.raises(InputError) as caught:
        refuse_impossible(Arguments.parse(words.split()).flags.values())
    assert request_ in caught.value.message
    assert "--engine vllm" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_everything_impossible_is_told_at_once() -> None:
    with pytest.raises(InputError, match="--tensor-parallel-size 4 .*; --enable-lora "):
        refuse_impossible(Arguments.parse(["-tp", "4", "--enable-lora"]).flags.values())


@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_gpus_share_has_no_effect_where_there_is_none(has_gpu: bool, tmp_path, monkeypatch) -> None:
    device = tmp_path / "device"
    if has_gpu:
        device.touch()
    monkeypatch.setattr("startup.engine.cuda._GPU_DEVICES", (device,))
    lines = list(notices(Arguments.parse(["--gpu-memory-utilization", "0.5"]).flags.values()))
    assert [line.startswith("--gpu-memory-utilization 0.5 has no effect: there is no GPU") for line in lines] == (
        [] if has_gpu else [True]
    )


def test_serve_shows_notices_and_goes_on(parse, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("VCLI_UNHEARD_OF", "1")
    assert parse("m", "--enforce-eager").model.model == "m"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Notice: VCLI_UNHEARD_OF is not a variable of vllm-cli.",
        "Notice: --enforce-eager has no effect: torch and transformers choose the kernels.",
    ]
