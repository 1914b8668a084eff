"""A start compiles what starts of its kind have used, or the release's list, with its own model's values."""

import json
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from startup.kernels import kernel_lists
from startup.kernels.kernel import Kernel, ModelTraits
from startup.kernels.kernel_lists import (
    KernelUse,
    kernels_for,
    read_keys,
    read_traits,
    save_kernels,
    save_keys,
    shipped_kernels,
)

_DIVISIBLE = [["tt.divisibility", 16]]
_LLAMA = KernelUse("0.33.0", (0, 33), "llama", ("--enforce-eager",), 32000, "bfloat16")
_QWEN = replace(_LLAMA, kind="qwen", vocab_size=151937, dtype="float16")
_UNLISTED = (0, 28)
"""A release without a list in this package."""


def _kernel(name: str = "_top_k", *, vocab_size: Any = 32000, pointer: str = "*bf16", compile_s: float = 0.0) -> Kernel:
    """A kernel for a model with this vocabulary's size: as a constant, an argument, a mask and blocks."""
    sizes = (vocab_size, ceil(vocab_size / 32), ceil(vocab_size / 1024))
    return Kernel(
        module="vllm.sampler",
        function=name,
        signature={
            "logits_ptr": pointer,
            "VOCAB_SIZE": "constexpr",
            "vocab_size": "i32",
            "bin_mask_stride": "i32",
            "local_max_stride": "i32",
            "n": "i32",
        },
        constants=(((1,), vocab_size),),
        attributes=(
            ((0,), _DIVISIBLE),
            ((1,), []),
            *(((number,), _DIVISIBLE if size % 16 == 0 else []) for number, size in enumerate(sizes, 2)),
            ((5,), _DIVISIBLE),
        ),
        options={"num_warps": 8},
        compile_s=compile_s,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the lists of this package, which is empty."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(kernel_lists, "_SHIPPED", folder)
    return folder


_MODELS = [
    pytest.param(ModelTraits(151937, "float16"), _kernel(vocab_size=151937, pointer="*fp16"), id="odd vocabulary"),
    pytest.param(ModelTraits(64000, "float32"), _kernel(vocab_size=64000, pointer="*fp32"), id="float32"),
    pytest.param(ModelTraits(151936, "bfloat16"), _kernel(vocab_size=151936), id="Qwen 3"),
    pytest.param(ModelTraits(152064, "bfloat16"), _kernel(vocab_size=152064), id="Qwen 2.5"),
    pytest.param(ModelTraits(262144, "bfloat16"), _kernel(vocab_size=262144), id="Gemma 3"),
    pytest.param(ModelTraits(32000, "bfloat16"), _kernel(), id="same"),
    pytest.param(ModelTraits(None, "bfloat16"), None, id="unknown vocabulary"),
    pytest.param(ModelTraits(64000, None), _kernel(vocab_size=64000), id="unknown type"),
    pytest.param(ModelTraits(32000, "float8"), None, id="another type"),
]


@pytest.mark.parametrize(("traits", "expected"), _MODELS)
def test_a_kernel_of_one_model_becomes_the_kernel_of_another(traits, expected):
    general = _kernel().for_any_model(_LLAMA.traits)
    assert general.for_model(traits) == expected


def test_a_kernel_without_the_size_as_a_constant_is_compiled_for_an_unknown_model():
    kernel = replace(_kernel(vocab_size=151936), constants=())
    assert kernel.for_any_model(_LLAMA.traits).for_model(ModelTraits()) == kernel


def test_without_traits_a_kernel_stays_as_it_is():
    assert _kernel().for_any_model(ModelTraits()).for_model(ModelTraits()) == _kernel()


@pytest.mark.parametrize(
    ("config", "flag", "expected"),
    [
        ({"vocab_size": 5, "torch_dtype": "float16"}, None, ModelTraits(5, "float16")),
        ({"vocab_size": 5, "dtype": "bfloat16"}, "auto", ModelTraits(5, "bfloat16")),
        ({"vocab_size": 5, "dtype": "float32"}, None, ModelTraits(5, "bfloat16")),
        ({"vocab_size": 5, "dtype": "float32"}, "float32", ModelTraits(5, "float32")),
        ({"vocab_size": 5, "dtype": "bfloat16"}, "half", ModelTraits(5, "float16")),
        ({"text_config": {"vocab_size": 6}, "vocab_size": 5, "dtype": "bfloat16"}, None, ModelTraits(6, "bfloat16")),
        ({"vocab_size": "5", "dtype": None}, None, ModelTraits()),
        ([], None, ModelTraits()),
        (None, None, ModelTraits()),
    ],
)
def test_traits_of_a_model(tmp_path, config, flag, expected):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_traits(tmp_path, flag) == expected
    assert read_traits(None, flag).vocab_size is None


def test_a_start_gets_the_kernels_of_the_last_start_of_its_kind():
    save_kernels(_LLAMA, [_kernel("_old")])
    save_kernels(_LLAMA, [_kernel("_fast", compile_s=0.1), _kernel("_slow", compile_s=5.0)])
    assert [kernel.function for kernel in kernels_for(_LLAMA)] == ["_slow", "_fast"]


def test_a_kernel_that_was_found_in_the_cache_keeps_its_time():
    save_kernels(_LLAMA, [_kernel("_fast", compile_s=0.1), _kernel("_slow", compile_s=5.0)])
    save_kernels(_LLAMA, [_kernel("_fast"), _kernel("_slow"), _kernel("_new", compile_s=1.0)])
    assert [kernel.function for kernel in kernels_for(_LLAMA)] == ["_slow", "_new", "_fast"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        pytest.param(_LLAMA, ["_top_k", "_listed"], id="same flags"),
        pytest.param(replace(_LLAMA, flags=("--quantization", "fp8")), ["_listed"], id="other flags"),
        pytest.param(replace(_LLAMA, version="0.32.1"), ["_listed"], id="another vLLM"),
    ],
)
def test_a_start_of_a_new_kind_gets_what_a_similar_start_has_used_and_the_list(shipped, other, expected):
    listed = _kernel("_listed").for_any_model(_LLAMA.traits)
    (shipped / "vllm-0.33.json").write_text(json.dumps([kernel_lists.asdict(listed)]))
    save_kernels(other, [_kernel()])
    found = kernels_for(_QWEN)
    assert [kernel.function for kernel in found] == expected
    assert {dict(kernel.constants)[(1,)] for kernel in found} == {_QWEN.vocab_size}


def test_a_damaged_list_counts_as_none(cache):
    save_kernels(_LLAMA, [_kernel()])
    (file,) = (cache / "vllm_cli" / "kernels").iterdir()
    file.write_text(file.read_text().replace('"signature"', '"other"'))
    assert kernels_for(_LLAMA) == ()


def test_a_release_without_a_list_has_none():
    assert shipped_kernels(_UNLISTED) == ()


def test_the_list_of_this_package_has_the_kernels_of_the_sampler(monkeypatch):
    monkeypatch.undo()
    kernels = shipped_kernels((0, 33))
    assert {"_topk_topp_kernel", "_gumbel_sample_kernel", "_penalties_kernel"} <= {each.function for each in kernels}
    assert len({kernel.id for kernel in kernels}) == len(kernels)
    assert all(kernel.for_model(ModelTraits(32000, "bfloat16")) for kernel in kernels)
    assert "/" not in json.dumps([kernel_lists.asdict(kernel) for kernel in kernels]), "it names a path"


def test_keys_are_added_for_each_capability(monkeypatch):
    save_keys((9, 0), {"a": "1", "b": "2"})
    save_keys((9, 0), {"b": "3"})
    save_keys((8, 0), {"a": "4"})
    assert read_keys((9, 0)) == {"a": "1", "b": "3"}
    monkeypatch.setattr(kernel_lists, "distribution_stamps", lambda: (("another", 1, 1),))
    assert read_keys((9, 0)) == {}


def test_lists_and_keys_are_bounded(monkeypatch):
    monkeypatch.setattr(kernel_lists, "_MOST_KERNELS", 2)
    monkeypatch.setattr(kernel_lists, "_MOST_KEYS", 2)
    save_kernels(_LLAMA, [_kernel(f"_{number}", compile_s=number) for number in range(3)])
    assert [kernel.function for kernel in kernels_for(_LLAMA)] == ["_2", "_1"]
    save_keys((9, 0), {"a": "1", "b": "2"})
    save_keys((9, 0), {"c": "3"})
    assert read_keys((9, 0)) == {"b": "2", "c": "3"}
