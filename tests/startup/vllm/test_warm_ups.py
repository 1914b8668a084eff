"""vLLM's warm-up leaves out what the model does not use, and does the same as plain vLLM's for the rest."""

import importlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from startup.imports.finder import place
from startup.vllm.patches import engine_idle, ranks, warm_ups
from startup.vllm.patches.kernel_overrides import KERNEL_OVERRIDES
from startup.vllm.patches.warm_ups import AUTOTUNER, INDUCTOR, STEP5, WARM_UPS
from tests.startup.conftest import ToyPackages
from tests.support.cli import run_python

_MONITOR = """
import importlib
watched = []

def _setup_tilelang_jit_hook():
    try:
        watched.append(importlib.import_module("tilelang.jit.kernel").Kernel)
    except Exception:
        pass

def _setup_cutedsl_jit_hook():
    try:
        import cutlass.cute as cute
    except Exception:
        return
    watched.append(cute.compile)
"""


@pytest.fixture
def monitor(toys: ToyPackages) -> Any:
    toys.write("vllm.utils.jit_monitor", _MONITOR)
    toys.write("tilelang.jit.kernel", "Kernel = 'TileLang'\n")
    toys.write("tilelang.jit.__init__", "from tilelang.jit import kernel\n")
    toys.write("cutlass.cute", "compile = 'CuTe DSL'\n")
    toys.fit(WARM_UPS)
    place(WARM_UPS)
    return importlib.import_module("vllm.utils.jit_monitor")


_COMPILERS = pytest.mark.parametrize(
    ("set_up", "module", "compiler"),
    [
        ("_setup_tilelang_jit_hook", "tilelang.jit", "TileLang"),
        ("_setup_cutedsl_jit_hook", "cutlass.cute", "CuTe DSL"),
    ],
)


@_COMPILERS
@pytest.mark.parametrize("is_loaded", [False, True], ids=["later", "before"])
def test_a_compiler_is_watched_once_it_is_imported(set_up, module, compiler, is_loaded, monitor):
    if is_loaded:
        importlib.import_module(module)
    getattr(monitor, set_up)()
    assert (monitor.watched, module in sys.modules) == ([compiler] if is_loaded else [], is_loaded)
    importlib.import_module(module)
    assert monitor.watched == [compiler]


@_COMPILERS
def test_a_compiler_that_cannot_be_imported_is_not_watched(set_up, module, compiler, monitor, toys):
    toys.write(f"{module}.__init__" if module == "tilelang.jit" else module, "raise RuntimeError('no GPU')\n")
    getattr(monitor, set_up)()
    with pytest.raises(RuntimeError, match="no GPU"):
        importlib.import_module(module)
    assert monitor.watched == []


_PICKLING = """
registered = []

def _register_scaled_operand_constraints_pickling():
    try:
        from cutlass.operators.metadata import ScaledOperandConstraints
    except ImportError:
        return
    registered.append(ScaledOperandConstraints)

_register_scaled_operand_constraints_pickling()
"""


@pytest.mark.parametrize("is_loaded", [False, True], ids=["later", "before"])
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "changed"])
def test_inductor_registers_a_class_of_cutlass_once_it_is_imported(is_known, is_loaded, toys, monkeypatch):
    text = _PICKLING if is_known else _PICKLING.replace("return\n", "raise\n")
    toys.write("inductor.pickling", text)
    toys.write("cutlass.operators.metadata", "ScaledOperandConstraints = 'constraints'\n")
    monkeypatch.setattr(warm_ups, "_PICKLING", "inductor.pickling")
    if is_loaded:
        importlib.import_module("cutlass")
    warm_ups._register_once_imported()
    pickling = importlib.import_module("inductor.pickling")
    is_late = is_known and not is_loaded
    assert (pickling.registered, "cutlass" in sys.modules) == ([] if is_late else ["constraints"], not is_late)
    importlib.import_module("cutlass.operators.metadata")
    assert pickling.registered == ["constraints"]


def test_layers_of_step5_are_searched_only_if_its_modules_are_loaded(toys):
    layers = "vllm.models.step5.nvidia.sparse_attention"
    toys.write(layers, "")
    toys.write(
        "vllm.model_executor.warmup.step5_dsa_warmup",
        f"def _step5_dsa_impl(worker):\n    import {layers}\n    return worker\n",
    )
    toys.fit(STEP5)
    place(STEP5)
    warm_up: Any = importlib.import_module("vllm.model_executor.warmup.step5_dsa_warmup")
    assert (warm_up._step5_dsa_impl("worker"), layers in sys.modules) == (None, False)
    importlib.import_module(layers)
    assert warm_up._step5_dsa_impl("worker") == "worker"


_KERNELS = """
tuned = []
def flashinfer_autotune(runner, *, skip_attn=False):
    tuned.append(skip_attn)
def _flashinfer_autotune_token_counts(runner):
    return (64, 8)
"""
_TUNER = "class AutoTuner:\n    _instance = None\n"
_TUNER_MODULE = "flashinfer.autotuner.autotuner"
_Tune = Callable[..., tuple[list[bool], list[int]]]


@pytest.fixture
def tune(toys: ToyPackages, monkeypatch: pytest.MonkeyPatch) -> _Tune:
    """A function that tunes for a model. Returns vLLM's calls of its tuner, and the sizes of batches before.

    `asks`: when a kernel of the model asks for the tuner. `config`: attributes of the configuration.
    """
    toys.write("vllm.model_executor.warmup.kernel_warmup", _KERNELS)
    toys.write(_TUNER_MODULE, _TUNER)
    toys.fit(AUTOTUNER)
    place(AUTOTUNER)
    kernels: Any = importlib.import_module("vllm.model_executor.warmup.kernel_warmup")
    world = SimpleNamespace(get_world_group=lambda: SimpleNamespace(world_size=1))
    monkeypatch.setitem(sys.modules, ranks.WORLD.module, world)

    def tune(asks: str = "never", *, skip_attn: bool = False, **config: Any) -> tuple[list[bool], list[int]]:
        batches = []

        def ask() -> None:
            importlib.import_module(_TUNER_MODULE).AutoTuner._instance = object()  # type: ignore[attr-defined]

        def run(num_tokens: int, *, skip_eplb: bool, is_profile: bool, randomize_inputs: bool) -> None:
            assert torch.is_inference_mode_enabled()
            batches.append(num_tokens)
            if asks == "with attention":
                ask()

        if asks == "in an earlier batch":
            ask()
        settings = SimpleNamespace(
            attention_config=SimpleNamespace(hisparse_config=config.get("hisparse")),
            cache_config=SimpleNamespace(use_replayssm=config.get("replayssm", False)),
        )
        kernels.flashinfer_autotune(SimpleNamespace(_dummy_run=run, vllm_config=settings), skip_attn=skip_attn)
        return kernels.tuned, batches

    return tune


def test_without_kernels_to_tune_the_batches_run_and_the_tuner_is_not_imported(tune):
    assert torch.is_inference_mode_enabled() is False
    assert tune() == ([], [64, 8])
    assert _TUNER_MODULE not in sys.modules


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"asks": "in an earlier batch"}, ([False], [])),
        ({"asks": "with attention"}, ([False], [64, 8])),
        ({"skip_attn": True}, ([True], [])),
        ({"hisparse": object()}, ([False], [])),
        ({"replayssm": True}, ([False], [])),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_kernels_that_can_be_tuned_are_tuned_as_in_plain_vllm(options, expected, tune):
    assert tune(**options) == expected


def test_a_preloaded_tuner_that_no_kernel_has_asked_for_is_not_used(tune):
    importlib.import_module(_TUNER_MODULE)
    assert tune() == ([], [64, 8])


@pytest.fixture
def worker(toys: ToyPackages, monkeypatch: pytest.MonkeyPatch) -> Any:
    toys.write("vllm.envs", "VLLM_GPU_SYNC_CHECK = None\n")
    toys.write("vllm.compilation.compiler_interface", "seen = []\ndef trigger_inductor_lazy_init(device=None):\n"
               "    seen.append(device)\n")  # fmt: skip
    toys.write("vllm.v1.worker.gpu_worker", "from vllm.compilation import compiler_interface\nclass Worker:\n"
               "    def compile_or_warm_up_model(self):\n"
               "        compiler_interface.trigger_inductor_lazy_init('cuda:0')\n        return 'times'\n")  # fmt: skip
    for hook in (INDUCTOR, engine_idle.WHEN_IDLE):
        toys.fit(hook)
    monkeypatch.setattr(engine_idle, "_idle_work", [])
    place(INDUCTOR)
    importlib.import_module("vllm.envs")
    workers: Any = importlib.import_module("vllm.v1.worker.gpu_worker")
    return workers.Worker()


def _warm_up(worker: Any, backend: str = "uni", num_nodes: int = 1) -> list[str]:
    """How often Inductor has been prepared when the warm-up has ended."""
    parallel = SimpleNamespace(distributed_executor_backend=backend, nnodes=num_nodes)
    worker.vllm_config = SimpleNamespace(parallel_config=parallel)
    assert worker.compile_or_warm_up_model() == "times"
    seen: list[str] = sys.modules["vllm.compilation.compiler_interface"].seen
    return [*seen]


@pytest.mark.parametrize("backend", ["uni", "mp"])
def test_inductor_is_prepared_once_the_engine_is_idle(backend, worker):
    assert _warm_up(worker, backend) == []
    engine_idle._do_own_work()
    assert sys.modules["vllm.compilation.compiler_interface"].seen == ["cuda:0"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("backend", "num_nodes", "check"),
    [("ray", 1, None), ("mp", 2, None), ("external_launcher", 1, None), ("uni", 1, "warn")],
)
def test_inductor_is_prepared_at_once_where_no_idle_work_is_done(backend, num_nodes, check, worker, monkeypatch):
    monkeypatch.setattr(sys.modules["vllm.envs"], "VLLM_GPU_SYNC_CHECK", check)
    assert _warm_up(worker, backend, num_nodes) == ["cuda:0"]


_DISPATCHER = """
import sys

def _rebind_kernels(overrides):
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is overrides[0]:
                setattr(module, name, overrides[1])
"""


def test_references_to_a_replaced_kernel_are_found_in_vllm_and_in_plugins_but_not_searched_in_torch(toys):
    toys.write("vllm.triton_utils.dispatcher", _DISPATCHER)
    toys.fit(KERNEL_OVERRIDES)
    place(KERNEL_OVERRIDES)
    holders = ("vllm.v1.worker.block_table", "a_plugin.kernels", "torch.a_part")
    kernel = object()
    for name in holders:
        toys.write(name) if not name.startswith("torch") else sys.modules.setdefault(name, ModuleType(name))
        importlib.import_module(name).kernel = kernel  # type: ignore[attr-defined]
    dispatcher: Any = importlib.import_module("vllm.triton_utils.dispatcher")
    dispatcher._rebind_kernels((kernel, "override"))
    found = [sys.modules[name].kernel for name in holders]  # type: ignore[attr-defined]
    assert (found, dispatcher.sys) == (["override", "override", kernel], sys)


_RANK = """
import sys, types
import torch.distributed as dist
from startup.vllm.patches import ranks
rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=2)
group = types.SimpleNamespace(world_size=2, cpu_group=dist.group.WORLD)
sys.modules[ranks.WORLD.module] = types.SimpleNamespace(get_world_group=lambda: group)
print([ranks.first_of_all_ranks(texts[rank]) for texts in (("", ""), ("", "b"), ("a", ""), ("a", "b"))])
dist.destroy_process_group()
"""


@pytest.mark.thorough
def test_all_ranks_get_the_first_text_of_any_rank(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        done = [*pool.map(lambda rank: run_python(_RANK, str(rank), str(tmp_path / "ranks")), range(2))]
    assert [each.stdout for each in done] == ["['', 'b', 'a', 'a']\n"] * 2, [each.stderr for each in done]
