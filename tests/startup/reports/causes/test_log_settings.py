"""What a log says about its server (settings, versions, platform) decides the cause and the advice."""

import pytest

from startup.reports.causes.digest import write_digest
from startup.reports.causes.first_cause import Cause, find_cause
from startup.reports.causes.known.failed_parts import PARTS

_CORE = "(EngineCore_DP0 pid=40) ERROR 09-03 11:03:37 [core.py:712] "
_INFO = "(APIServer pid=1) INFO 09-03 11:03:00 [utils.py:253] "
_VERSION = f"{_INFO}vLLM API server version 0.11.0"
_SPECULATIVE = "'speculative_config': {'method': 'mtp', 'num_speculative_tokens': 3}"
_BACKEND = "ValueError: FLASH_ATTN is not valid for this configuration. Reason: ['kv_cache_dtype not supported']"


def _arguments(text: str) -> str:
    return f"{_INFO}non-default args: {{'model_tag': 'a/b', 'model': 'a/b', 'max_model_len': 4096, {text}}}"


def _failure(error: str, *files: str) -> list[str]:
    frames = [f'{_CORE}  File "/x/dist-packages/{file}", line 7, in f' for file in files]
    return [f"{_CORE}EngineCore failed to start.", f"{_CORE}Traceback (most recent call last):", *frames, _CORE + error]


def _explain(*lines: str) -> tuple[Cause, str]:
    cause = find_cause([_VERSION, *lines])
    assert cause is not None
    return cause, write_digest(cause)[-2]


def _name(cause: Cause) -> str | None:
    return cause.known and cause.known.name


def _settings() -> list[tuple[str, str]]:
    return [(file, name) for part in PARTS for file in part.files for name in part.settings]


@pytest.mark.parametrize(("file", "name"), _settings())
def test_each_part_names_the_setting_that_turned_it_on(file, name):
    path = f"vllm/x{file}x.py" if not file.endswith(".") else f"vllm/x{file}py"
    setting = f"{name}X=1 vllm serve a/b" if name.isupper() else _arguments(f"'{name}': 'something'")
    flag = f"{name}X" if name.isupper() else f"--{name.replace('_', '-')}"
    _, advice = _explain(setting, *_failure("RuntimeError: odd", path))
    assert flag in advice and "set" in advice
    assert "it is set" not in _explain(_arguments("'seed': 1"), *_failure("RuntimeError: odd", path))[1]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(_arguments(_SPECULATIVE), id="arguments"),
        pytest.param(f"{_INFO}args: Namespace(host=None, speculative_config={{'a': 1}}, port=8000)", id="namespace"),
        pytest.param(f"{_INFO}Initializing a V1 LLM engine (v0.11.0) with config: model='a', "
                     "speculative_config=SpeculativeConfig(method='mtp'), tokenizer='a'", id="configuration"),
        pytest.param("$ vllm serve a/b --speculative-config '{\"method\": \"mtp\"}'", id="command"),
        pytest.param("      --speculative-config '{\"method\": \"mtp\"}' \\", id="continued"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("error", "files"),
    [
        ("AssertionError", ["vllm/v1/spec_decode/eagle.py", "vllm/v1/attention/selector.py"]),
        ("KeyError: 'model.layers.61.x'", ["vllm/v1/worker/gpu_model_runner.py", "vllm/models/deepseek_mtp.py"]),
        ("AssertionError", ["vllm/v1/worker/gpu_model_runner.py"]),
    ],
)
def test_speculative_decoding_is_left_out_first(line, error, files):
    cause, advice = _explain(line, *_failure(error, *files))
    assert "--speculative-config" in advice and "set" in advice
    assert _name(cause) == ("error-in-code" if len(files) == 1 else "speculative-decoding-failed")


@pytest.mark.parametrize(
    "value",
    [
        "'speculative_config': None",
        "'quantization': 'auto'",
        "'enable_lora': False",
        "'lora_modules': []",
        "'cpu_offload_gb': 0",
    ],
)
def test_a_setting_that_turns_nothing_on_is_not_named(value):
    files = ("vllm/lora/x.py", "vllm/v1/spec_decode/x.py", "vllm/quantization/x.py", "vllm/offload.py")
    assert "set" not in _explain(_arguments(value), *_failure("RuntimeError: odd", *files))[1].replace("setting", "")


@pytest.mark.parametrize(
    ("setting", "error", "flag"),
    [
        ("'kv_cache_dtype': 'fp8'", "RuntimeError: kv_cache_dtype is odd", "--kv-cache-dtype"),
        ("'kv_cache_dtype': 'fp8_ds_mla'", _BACKEND, "--kv-cache-dtype"),
        (
            "'tokenizer_mode': 'mistral'",
            "AttributeError: 'MistralTokenizer' object has no attribute 'x'",
            "--tokenizer-mode",
        ),
        ("'quantization': 'awq'", "RuntimeError: awq cannot do this", "--quantization"),
    ],
)
def test_an_exception_that_names_a_setting_or_its_value_blames_it(setting, error, flag):
    assert f"{flag} (" in _explain(_arguments(setting), *_failure(error, "vllm/x.py"))[1]


@pytest.mark.parametrize("number", ["'max_model_len': 4096", "'gpu_memory_utilization': 0.9"])
def test_a_number_is_not_left_out(number):
    name = number.split("'")[1]
    assert "Leave out" not in _explain(_arguments(number), *_failure(f"RuntimeError: odd {name}", "vllm/x.py"))[1]


@pytest.mark.parametrize(
    "line",
    ["FooForCausalLM has no vLLM implementation, falling back to Transformers implementation. Some",
     "Resolved architecture: TransformersForCausalLM"],
)  # fmt: skip
def test_a_model_without_a_class_of_vllm_is_the_cause_of_what_fails_in_transformers(line):
    failed = _failure("AttributeError: 'FooConfig' object has no attribute 'x'", "transformers/models/foo.py")
    assert _name(_explain(_INFO + line, *failed)[0]) == "model-class-missing"
    out_of_memory = _failure("torch.OutOfMemoryError: CUDA out of memory. Tried", "transformers/models/foo.py")
    assert _name(_explain(_INFO + line, *out_of_memory)[0]) == "gpu-out-of-memory"


@pytest.mark.parametrize(
    "folder", ["v1/attention", "model_executor/layers/quantization", "lora", "model_executor/models"]
)
@pytest.mark.parametrize(
    "message", ["x is not supported with y", "x cannot be used with y", "y requires x", "please use --x"]
)
def test_a_refusal_says_more_than_the_place(folder, message):
    cause, _ = _explain(*_failure(f"ValueError: {message}", f"vllm/{folder}/x.py"))
    assert _name(cause) == "setting-refused"


@pytest.mark.parametrize(
    ("size", "error", "advice"),
    [
        (3, "ValueError: Total number of attention heads (32) must be divisible by tensor parallel size (3).", "2."),
        (6, "ValueError: Total number of attention heads (40) must be divisible by tensor parallel size (6).", "5."),
        (6, "AssertionError: 64 is not divisible by 6", "4."),
        (8, "ValueError: The output_size of gate's and up's weight = 192 is not divisible by weight quantization "
            "block_n = 128.", "4 --pipeline-parallel-size 2."),
        (4, "ValueError: Weight input_size_per_partition = 192 is not divisible by weight quantization block_k = 128.",
            "2 --pipeline-parallel-size 2."),
        (2, "ValueError: Weight input_size_per_partition = 14784 is not divisible by min_thread_k = 128. Consider "
            "reducing tensor_parallel_size", "1 --pipeline-parallel-size 2."),
    ],
)  # fmt: skip
def test_a_tensor_parallel_size_that_divides_is_computed(size, error, advice):
    cause, shown = _explain(_arguments(f"'tensor_parallel_size': {size}"), *_failure(error, "vllm/x.py"))
    assert _name(cause) == "not-divisible"
    assert shown.startswith(f"Do: Set --tensor-parallel-size {advice}")


@pytest.mark.parametrize("symbol", ["ncclCommWindowRegister", "__nvJitLinkComplete_12_4", "cublasLtX", "cudnnX"])
def test_a_missing_symbol_of_an_nvidia_library_is_another_copy_of_it(symbol):
    cause, advice = _explain(f"ImportError: /x/torch/lib/libtorch_cuda.so: undefined symbol: {symbol}")
    assert _name(cause) == "nvidia-library-in-the-way" and "LD_LIBRARY_PATH" in advice


@pytest.mark.parametrize(
    ("error", "does_add"),
    [
        ("CUDA error: the provided PTX was compiled with an unsupported toolchain.", True),
        ("Unexpected error. Error 803: system has unsupported display driver / cuda driver combination", False),
        ("Unexpected error. Error 804: forward compatibility was attempted on non supported HW", False),
    ],
)
def test_cuda_compat_is_added_or_removed(error, does_add):
    advice = _explain(f"RuntimeError: {error}")[1]
    assert ("VLLM_ENABLE_CUDA_COMPATIBILITY=1" in advice) == does_add
    assert ("Remove cuda-compat" in advice) != does_add


_WAITS = {
    "Waiting for creating a placement group of specs for 70 seconds. specs=[]": "ray-has-too-few-gpus",
    "Tensor parallel size (16) exceeds available GPUs (8).": "ray-has-too-few-gpus",
    "Error: No available node types can fulfill resource request {'GPU': 1.0}": "ray-has-too-few-gpus",
    "No available shared memory broadcast block found in 60 seconds.": "worker-hangs",
    "vLLM is using nccl==2.27.5": "nccl-hangs",
    "generating GPU P2P access cache in /x.json": "nccl-hangs",
    "[c10d] The client socket has failed to connect to [x]:1 (errno: 111).": "nodes-do-not-meet",
}


@pytest.mark.parametrize("line", _WAITS)
@pytest.mark.parametrize("end", ["nothing", "Ctrl-C"])
def test_a_start_that_waits_says_what_it_waits_for(line, end):
    lines = ["Traceback (most recent call last):", "KeyboardInterrupt"] if end == "Ctrl-C" else []
    cause, _ = _explain(f"{_INFO}Starting to load model", f"{_INFO}{line}", *lines)
    assert (_name(cause), cause.is_waiting) == (_WAITS[line], True)
    assert " waits" in write_digest(cause)[0]


@pytest.mark.parametrize("line", _WAITS)
def test_a_start_that_goes_on_does_not_wait(line):
    assert find_cause([_VERSION, _INFO + line, f"{_INFO}Starting to load model"]) is None
    cause, _ = _explain(_INFO + line, *_failure("RuntimeError: No CUDA GPUs are available", "vllm/x.py"))
    assert _name(cause) == "no-device"


def test_a_quoted_exception_of_a_worker_comes_before_an_unknown_one_of_a_helper():
    helper = ["(EngineCore pid=7) Traceback (most recent call last):", "(EngineCore pid=7) OddError: helper"]
    quoted = "RuntimeError: Worker failed with error 'CUDA out of memory. Tried', please check the stack trace above"
    cause, _ = _explain(*helper, *_failure(quoted, "vllm/v1/executor/multiproc_executor.py"))
    assert _name(cause) == "gpu-out-of-memory"


@pytest.mark.parametrize(
    ("platform", "names"),
    [("rocm", ["HIP_VISIBLE_DEVICES", "/dev/kfd", "amd.com/gpu"]), ("cuda", ["CUDA_VISIBLE_DEVICES"])],
)
def test_advice_has_the_names_of_the_platform(platform, names):
    line = f"{_INFO}Automatically detected platform {platform}."
    advice = _explain(line, *_failure("RuntimeError: Failed to infer device type", "vllm/x.py"))[1]
    assert [name for name in names if name not in advice] == []


def test_unified_memory_and_slices_have_advice_of_their_own():
    taken = "ValueError: Free memory on device (101/121.69 GiB) on startup is less than desired GPU memory utilization"
    assert "drop_caches" in _explain(*_failure(taken, "vllm/x.py"))[1]
    assert _name(_explain(*_failure("pynvml.NVMLError_NoPermission: x", "vllm/x.py"))[0]) == "unknown-device"
    assert "(MIG)" in _explain(*_failure("RuntimeError: Duplicate GPU detected : rank 1", "vllm/x.py"))[1]


@pytest.mark.parametrize(
    "line",
    [
        'error from HF API, response code: 400, data: {"error":"The specified tag is not available in the repository"}',
        "get_model_endpoint: no GGUF files found in repository a/b",
        "ValueError: Downloaded GGUF files not found in /x for quant_type Q9",
    ],
)
def test_a_repository_without_the_quantization(line):
    cause = find_cause([line, "llama_model_load: error loading model", "srv: failed to load model"])
    assert cause is not None and _name(cause) == "gguf-quantization-missing"


@pytest.mark.parametrize(
    ("source", "text"), [("assert a == b", "AssertionError: a == b"), ("raise TypeError(x)", "TypeError: x)")]
)
def test_a_traceback_that_is_cut_before_its_exception_shows_it_in_the_last_line(source, text):
    lines = _failure("x", "vllm/model_executor/models/x.py")[:-1]
    cause, _ = _explain(*lines, f"{_CORE}    {source}")
    assert (cause.text, _name(cause)) == (text, "model-failed")


def test_the_stack_of_a_crash_names_the_part():
    stack = ["Fatal Python error: Segmentation fault", "", "Current thread 0x7f (most recent call first):",
             '  File "/vllm/v1/spec_decode/eagle.py", line 12 in f', '  File "/x/vllm/x.py", line 3 in f']  # fmt: skip
    assert "--speculative-config (set" in _explain(_arguments(_SPECULATIVE), *stack)[1]


_RAY = "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task."


@pytest.mark.parametrize("label", ["", "(RayWorkerWrapper pid=7, ip=10.0.0.1) "])
@pytest.mark.parametrize(
    "report",
    [_failure(_RAY, "vllm/x.py"), [_RAY], ["Killed"], ["exit code: -9"], [*_failure(_RAY, "vllm/x.py"), "Killed"]],
)
def test_a_crash_is_the_cause_of_what_is_reported_or_killed_after_it(label, report):
    crash = [f"{label}*** SIGSEGV received at time=1746566409 on cpu 131 ***", f"{label}Fatal Python error: Seg"]
    assert _name(_explain(*crash, *report)[0]) == "native-crash"


@pytest.mark.parametrize("label", ["", "(EngineCore_DP0 pid=40) "])
@pytest.mark.parametrize(
    "line",
    [
        "Exception ignored in: <function LLM.__del__ at 0x7ff3cdfdfba0>",
        "Exception ignored in atexit callback: <function shutdown at 0x7f>",
        "Exception ignored while calling deallocator <function LLM.__del__ at 0x7f>:",
    ],
)
def test_an_exception_that_python_ignores_is_no_cause(label, line):
    ignored = [line, "Traceback (most recent call last):", '  File "/x/vllm/llm.py", line 2, in __del__',
               "AttributeError: 'LLM' object has no attribute 'llm_engine'"]  # fmt: skip
    first = ["Traceback (most recent call last):", '  File "/x/vllm/a.py", line 1, in f', "torch.OutOfMemoryError: x"]
    assert _name(_explain(*(label + each for each in (*first, *ignored)))[0]) == "gpu-out-of-memory"
    assert _name(_explain(*(label + each for each in (*ignored, *first)))[0]) == "gpu-out-of-memory"


def test_a_traceback_of_a_notebook_continues_a_chain():
    cause, _ = _explain(
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "ImportError                               Traceback (most recent call last)",
        "---> 81             raise ImportError(",
        "ImportError: Could not import vllm python package.",
    )
    assert _name(cause) == "library-missing"


def _parts_with_causes() -> list[tuple[str, str]]:
    return [(file, part.known.name) for part in PARTS if part.known for file in part.files]


@pytest.mark.parametrize("root", ["/x/envs/vllm/lib/python3.12/site-packages/", "/usr/lib/dist-packages/", "/src/"])
@pytest.mark.parametrize(("file", "name"), [each for each in _parts_with_causes() if "/trans" not in each[0]])
def test_a_library_that_a_part_of_vllm_called_failed_for_that_part(root, file, name):
    own = file.strip("/")
    own = own if own.startswith("vllm/") else f"vllm/{own}"
    frames = [
        f"{root}vllm/v1/engine/core.py",
        f"{root}{own}/x.py",
        f"{root}vllm/_custom_ops.py",
        f"{root}torch/_ops.py",
    ]
    lines = [f'{_CORE}  File "{each}", line 7, in f' for each in frames]
    error = f"{_CORE}RuntimeError: m must be divisible by 4"
    cause, _ = _explain(
        f"{_CORE}EngineCore failed to start.", f"{_CORE}Traceback (most recent call last):", *lines, error
    )
    assert _name(cause) == name


def test_the_process_of_plain_vllm_that_fails_in_spawn_is_no_fault_of_vllm_cli():
    lines = ['  File "/usr/lib/python3.11/multiprocessing/spawn.py", line 122, in spawn_main', "    x",
             "ModuleNotFoundError: No module named 'transformers_modules.a.Phi-3'"]  # fmt: skip
    assert _name(_explain("Traceback (most recent call last):", *lines)[0]) == "remote-code-not-importable"


@pytest.mark.parametrize(
    ("error", "files", "name", "flag"),
    [
        ("AssertionError: num_spec_decodes: 4", ["vllm/x.py"], "speculative-decoding-failed", "--speculative-config"),
        ("AttributeError: no 'bnb_shard_offsets'", ["vllm/x.py"], "quantization-failed", "quantization"),
        (
            "ValueError: this kv-cache is not supported",
            ["vllm/x.py"],
            "setting-refused",
            "--kv-cache-dtype if it is set",
        ),
        (
            "IndexError: x",
            ["vllm/v1/core/kv_cache_utils.py"],
            "error-in-code",
            "--disable-hybrid-kv-cache-manager if it",
        ),
        ("AssertionError: x", ["vllm/v1/attention/x.py"], "attention-failed", "--attention-backend"),
    ],
)
def test_the_words_of_an_exception_show_the_part_if_the_log_has_no_settings(error, files, name, flag):
    cause = find_cause(_failure(error, *files))
    assert cause is not None
    assert _name(cause) == name and flag in write_digest(cause)[-2]


@pytest.mark.parametrize("labels", [("", "(APIServer pid=1) "), ("(APIServer pid=1) ", "")])
def test_a_message_whose_lines_have_lost_their_label_is_one_message(labels):
    error = "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"
    second = "  Value error, Model architectures ['X'] are not supported for now. Supported: a"
    cause, _ = _explain(f"{labels[0]}{error}", f"{labels[1]}{second}")
    assert _name(cause) == "architecture-unsupported"


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("ImportError: /lib64/libc.so.6: version `GLIBC_2.32' not found", "system-too-old"),
        ("ImportError: /lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found", "system-too-old"),
        ("RuntimeError: Triton Error [HIP]: Code: 101, Messsage: invalid device ordinal", "too-few-gpus"),
        ("RuntimeError: view size is not compatible with input tensor's size and stride", "error-in-code"),
        ("KeyError: 'getpwuid(): uid not found: 1001'", "user-without-name"),
        ("AttributeError: '_OpNamespace' '_C' object has no attribute 'awq_dequantize'", "operator-not-in-build"),
        (
            "ImportError: /x/vllm/_C.abi3.so: undefined symbol: _Z20cutlass_moe_mm_sm100RN2at6TensorE",
            "kernels-not-built",
        ),
        ("ImportError: /x/vllm/_C.abi3.so: undefined symbol: _ZN5torch3jit17parseSchemaE", "libraries-do-not-fit"),
        ("AssertionError: DP adjusted local rank 1 is out of bounds for 1 devices.", "too-few-gpus"),
        ("ValueError: Current node has no TPU available. vLLM engine cannot start", "ray-has-too-few-gpus"),
    ],
)
def test_causes_that_logs_of_others_have_shown(error, name):
    assert _name(_explain(*_failure(error, "vllm/x.py"))[0]) == name
