"""The choice of the engine, and the flags that the embedded engine ignores or rejects."""

from pathlib import Path

import pytest

from startup.settings.config import CompileCacheOption
from startup.words.arguments import Arguments
from startup.words.engine_choice import choose_engine, vllm_options
from startup.words.errors import InputError
from startup.words.screening import notices, reject_unsupported
from vllm_cli.main import main


@pytest.mark.parametrize("words", [["--startup-report"], ["--startup-report", "--json"]], ids=" ".join)
def test_a_flag_without_its_value_is_an_error(words):
    with pytest.raises(InputError, match="'--startup-report' requires an argument"):
        choose_engine(words)


def test_an_invalid_value_is_named():
    with pytest.raises(InputError, match="--startup-timeout: 'soon'"):
        vllm_options(["--startup-timeout", "soon"])


def test_settings_are_converted_and_the_start_method_comes_from_the_variable(monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    words = ["model", "--startup-timeout", "30", "--startup-report", "r", "--prefetch=off"]
    options = vllm_options(words)
    assert options.words == ("model",)
    assert options.start_method == "spawn"
    assert options.startup_timeout_s == 30
    assert options.startup_report == Path("r")
    assert options.prefetch == "off"


def test_a_variable_counts_if_its_flag_is_not_given(monkeypatch):
    variables = {"STANDBY": "off", "IDLE_STOP": "10m", "COMPILE_CACHE": "/c,require", "LISTEN_WHEN_READY": "yes"}
    for name, value in (variables | {"LOG_FORMAT": "json", "PREFLIGHT": "warn"}).items():
        monkeypatch.setenv(f"VCLI_{name}", value)
    options = vllm_options(["--preflight", "off"])
    assert (options.standby, options.idle_stop_s, options.listen_when_ready) == ("off", 600, True)
    assert (options.compile_cache, options.log_format) == (CompileCacheOption("/c", is_required=True), "json")
    assert options.preflight == "off"


def test_the_start_method_is_the_forkserver_if_the_variable_is_not_set():
    assert vllm_options([]).start_method == "forkserver"


def test_an_unknown_engine_is_an_error_with_a_suggestion():
    with pytest.raises(InputError, match=r"--engine 'vlm' is not one of .* \(did you mean 'vllm'\?\)"):
        choose_engine(["--engine", "vlm"])


@pytest.mark.parametrize(
    ("variable", "words", "engine"),
    [
        ("vllm", [], "vllm"),
        ("embedded", [], "embedded"),
        ("embedded", ["--engine", "vllm"], "vllm"),
        ("vllm", ["--engine", "embedded"], "embedded"),
    ],
)
def test_the_option_takes_precedence_over_the_variable(variable, words, engine, monkeypatch):
    monkeypatch.setenv("VCLI_ENGINE", variable)
    assert choose_engine(words) == engine


@pytest.mark.parametrize(("is_there", "engine"), [(True, "vllm"), (False, "embedded")], ids=["installed", "missing"])
def test_auto_is_vllm_if_it_is_installed(is_there, engine, tmp_path, monkeypatch):
    if is_there:
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert choose_engine(["model"]) == engine


NEUTRAL = [
    "--tensor-parallel-size 1",
    "--distributed-executor-backend mp",
    "--no-enable-lora",
    "--kv-cache-dtype auto",
    "--hf-overrides {}",
    "--no-enforce-eager",
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
        ("--enable-lora", "--enable-lora requests LoRA adapters. Use --engine vllm."),
        ("--lora-modules a=/a b=/b", "--lora-modules a=/a b=/b requests LoRA adapters"),
        ("--max-loras 4 --max-lora-rank 16", "--max-loras 4 requests LoRA adapters. Use"),
        ("--kv-cache-dtype fp8", "--kv-cache-dtype fp8 requests quantized weights"),
        ("-sc.model x", "requests speculative"),
        ("--tool-server demo", "--tool-server demo requests parsers of tool calls"),
        ("--config-format mistral", "--config-format mistral requests another way of loading"),
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
    monkeypatch.setattr("startup.imports.torch_environment._GPU_DEVICES", (device,))
    lines = list(notices(Arguments.parse(["--gpu-memory-utilization", "0.5"]).flags.values()))
    assert [line.startswith("--gpu-memory-utilization 0.5 has no effect: there is no GPU") for line in lines] == (
        [] if has_gpu else [True]
    )


def test_a_value_out_of_range_is_only_an_error(capsys, monkeypatch):
    monkeypatch.setattr("startup.imports.torch_environment._GPU_DEVICES", ())
    assert main(["serve", "m", "--gpu-memory-utilization", "5", "--enforce-eager"]) == 2
    message = "--gpu-memory-utilization must be above 0 and at most 1, got 5.0"
    assert capsys.readouterr().err == f"Error: {message}\nCode: VC-USAGE\n"


def test_serve_shows_notices_and_continues(parse, capsys, monkeypatch):
    monkeypatch.setenv("VCLI_XYZZY", "1")
    assert parse("m", "--enforce-eager").model.model == "m"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Notice: VCLI_XYZZY is not a variable of vllm-cli.",
        "Notice: --enforce-eager has no effect: torch and transformers choose the kernels.",
    ]
