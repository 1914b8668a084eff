"""Our changes of vLLM: the port's listener, torch's compiler, tokenizers, and answers to `/health`."""

import asyncio
import importlib
import json
import select
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.responses import Response

from startup.compiled_models.vllm_hooks import _without_secrets
from startup.hook import Text
from startup.imports.finder import place
from startup.port.acceptor import ACCEPTING, AnsweredProbe
from startup.vllm.patches import compiler
from startup.vllm.patches.compiler import compiler_imported
from startup.vllm.patches.compiler_keys import TRITON_KEY, VECTOR_PROBES, _cached_probe
from startup.vllm.patches.graphs import cuda_graphs
from startup.vllm.patches.graphs.cuda_graphs import GRAPH_MEMORY
from startup.vllm.patches.tokenizers import KEPT_TOKENIZERS, LATE_TOKENIZER, PROCESSOR_LOOKUP, CachedTokenizers
from startup.vllm.serving.drain import DrainedApp
from startup.vllm.serving.health_sampler import HealthSampler
from startup.vllm.serving.serving_events import _end_handler_first, reuse_listener
from startup.vllm.serving.serving_probes import ServingProbes
from tests.startup.conftest import ToyPackages
from tests.startup.vllm.fake_start import FAKE
from tests.support.cli import python_output


@pytest.mark.parametrize(
    ("host", "bound"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("0.0.0.0", "")], ids=str
)
def test_a_socket_that_binds_the_address_becomes_the_listener(host, bound):
    with socket.create_server((host, 0)) as listener, reuse_listener(listener), socket.socket() as taken:
        address = listener.getsockname()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((bound, address[1]))
        assert taken.getsockname() == address
        assert not taken.get_inheritable()
        with socket.create_connection(("127.0.0.1", address[1])):
            taken.accept()[0].close()


def test_other_addresses_and_kinds_are_bound_normally():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with reuse_listener(listener), socket.socket() as other, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] != port
            datagrams.bind(("127.0.0.1", port))
            assert datagrams.getsockname()[1] == port
        with reuse_listener(listener), socket.socket() as other, pytest.raises(OSError):
            other.bind(("no-such-name.invalid", port))
        with socket.socket() as other, pytest.raises(OSError, match="already in use"):
            other.bind(listener.getsockname())  # after the block


_ROOT = Path(__file__).parents[3]

_WITH_TORCH = """
import sys
from startup.vllm.patches.compiler import compiler_imported

with compiler_imported("deferred"):
    import torch
    import torch._dynamo
    from torch._inductor import lowering

    @torch.compile(backend="eager")
    def add_one(x):
        return x + 1

    class Model:
        @torch.compile(backend="eager", dynamic=False)
        def add_two(self, x):
            return x + 2

    @torch._dynamo.disable
    def add_three(x):
        return x + 3

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return torch.tensor(6)

def add_five():
    with Mode():
        total = torch.tensor(1) + 5
    return total.item()

assert add_five() == 6
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor."))]
one = torch.tensor(1)
assert (add_one(one).item(), Model().add_two(one).item(), add_three(one).item()) == (2, 3, 4)
assert add_one.__name__ == "add_one"
import torch._dynamo
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
assert add_five() == 6
assert len(lowering.lowerings) > 100
assert not torch.cuda.is_initialized()
"""


@pytest.mark.thorough
def test_torch_compiles_a_function_on_its_first_call():
    python_output(_WITH_TORCH, cwd=_ROOT)


@pytest.mark.thorough
def test_the_stand_ins_are_removed_if_the_imports_fail(toys, monkeypatch):
    monkeypatch.setattr(compiler, "_DEFERRED_MODULES", ("heavy.part",))
    toys.write("heavy.part", "class Thing:\n    kind = 'real'\n")
    with pytest.raises(ValueError, match="broken"), compiler_imported("deferred"):
        stand_in = importlib.import_module("heavy.part")
        raise ValueError("broken")
    assert importlib.import_module("heavy.part") is not stand_in
    assert importlib.import_module("heavy.part").Thing.kind == "real"


_MODULE = """
from pathlib import Path
calls = []
files_of_calls = []

def cached_tokenizer_from_config(model_config):
    calls.append(model_config.tokenizer)
    files = [file for file in Path(model_config.tokenizer).rglob("*") if file.is_file()]
    files_of_calls.append({file.name: file.stat().st_size for file in files})
    return next((file.read_text() for file in files if file.name == "tokenizer.json"), "none")

class StructuredOutputManager:
    def __init__(self, model_config):
        if model_config:
            self.tokenizer = cached_tokenizer_from_config(model_config=model_config)
"""


@pytest.fixture
def module(toys: ToyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    toys.write("vllm.v1.structured_output", _MODULE)
    place(LATE_TOKENIZER)
    return importlib.import_module("vllm.v1.structured_output")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A link to a version of a model."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokenizer.json").write_text(version)
        for other in ("consolidated.safetensors", "other.npz"):
            (tmp_path / version / other).write_bytes(bytes(1000))
    (tmp_path / "model").symlink_to("one")
    return tmp_path / "model"


def _config(tokenizer: Path | str) -> Any:
    return SimpleNamespace(tokenizer=str(tokenizer), model=str(tokenizer))


def test_the_tokenizer_is_loaded_once_when_it_is_used(module, model):
    manager, changed = (module.StructuredOutputManager(_config(model)) for _ in range(2))
    changed.tokenizer = "another"
    assert (changed.tokenizer, module.calls) == ("another", [])
    assert [manager.tokenizer, manager.tokenizer] == ["one"] * 2
    (files,) = module.files_of_calls
    assert files == {"tokenizer.json": 3, "consolidated.safetensors": 0}, "only a tokenizer's files are read"
    assert not any((model.parent / "temporary").iterdir())
    assert not hasattr(module.StructuredOutputManager(None), "tokenizer")


def _flip(model: Path) -> None:
    model.unlink()
    model.symlink_to("two")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_flip, id="flipped link"),
        pytest.param(lambda model: (model / "tokenizer.json").write_text("two"), id="written in place"),
        pytest.param(lambda model: shutil.rmtree(model.resolve()), id="removed"),
        pytest.param(lambda model: (model.parent / "temporary").rmdir(), id="temporary files removed"),
    ],
)
def test_a_tokenizer_that_is_loaded_after_a_change_of_its_folder_is_that_of_the_start(change, module, model):
    manager = module.StructuredOutputManager(_config(model))
    change(model)
    assert manager.tokenizer == "one"


@pytest.mark.parametrize(
    "own",
    [{"trust_remote_code": True}, {"tokenizer_mode": "of_a_plugin"}, {"tokenizer": "org/name"}, {"large": 2**26 + 1}],
    ids=str,
)
def test_a_tokenizer_that_may_need_more_than_its_known_files_is_loaded_at_once(own, module, model):
    with (model / "tokenizer.json").open("a") as file:
        file.truncate(own.pop("large", 3))
    config = SimpleNamespace(**{**vars(_config(model)), **own})
    manager = module.StructuredOutputManager(config)
    assert module.calls == [config.tokenizer]
    assert not callable(manager.tokenizer)


_REGISTRY = """
def cached_tokenizer_from_config(
    model_config, **kwargs
):
    return load(model_config.tokenizer, model_config.{})

def other_function(model_config):
    return model_config.something_else
"""


@pytest.mark.parametrize(("attribute", "fits"), [("hf_config", True), ("hf_config_path", False), ("loader", False)])
def test_a_function_that_reads_an_unknown_attribute_gets_no_small_object(attribute, fits, toys):
    (text,) = (need for need in KEPT_TOKENIZERS.needs if isinstance(need, Text))
    toys.write("toy_tokenizers.registry", _REGISTRY.format(attribute))
    assert replace(text, module="toy_tokenizers.registry").is_found() == fits


def test_a_model_whose_files_have_changed_since_its_tokenizer_was_kept_is_named(toys, tmp_path):
    toys.write("vllm.tokenizers.registry", "def cached_tokenizer_from_config(model_config): return model_config.model")
    toys.fit(KEPT_TOKENIZERS)
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text("{}")
    kept = CachedTokenizers()
    kept.fill([model])
    assert (kept.models, kept.changed()) == ([model], None)
    (model / "tokenizer.json").write_text('{"changed": true}')
    assert kept.changed() == model


_PROCESSORS = """
class AutoTokenizer:
    def from_pretrained(name, **options): raise AssertionError("loaded from files")

def find(name):
    if name == "invalid": raise ValueError(name)
    return f"the processor of {name}" if name == "vision" else AutoTokenizer.from_pretrained(name)
"""
_RENDERER = """
from transformers.models.auto import processing_auto

def _try_get_processor_chat_template(tokenizer, *, revision, code_revision=None, trust_remote_code=False):
    return processing_auto.find(tokenizer), revision
"""


@pytest.fixture
def renderer(toys: ToyPackages, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    toys.write("transformers.models.auto.processing_auto", _PROCESSORS)
    toys.write("vllm.renderers.hf", _RENDERER)
    place(PROCESSOR_LOOKUP)
    return importlib.import_module("vllm.renderers.hf")


@pytest.mark.parametrize(("name", "found"), [("text", "text"), ("vision", "the processor of vision"), ("invalid", "")])
def test_a_processor_is_found_as_before_and_is_else_the_given_tokenizer(renderer, name, found):
    before = vars(renderer.processing_auto).copy()
    with nullcontext() if found else pytest.raises(ValueError, match="invalid"):
        assert renderer._try_get_processor_chat_template(name, revision="main") == (found, "main")
    assert vars(renderer.processing_auto) == before


def _server_answering(status: int) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, lifespan="off", server_header=False, log_config=None)
    config.load()
    return SimpleNamespace(
        config=config, server_state=SimpleNamespace(default_headers=[]), lifespan=SimpleNamespace(state={})
    )


@pytest.mark.parametrize(("status", "is_repeated"), [(200, True), (503, True), (401, False), (404, False)])
def test_only_200_and_503_are_repeated(status, is_repeated):
    answer = asyncio.run(HealthSampler(_server_answering(status)).current())
    assert answer.startswith(b"HTTP/1.1 %d " % status) == is_repeated


def test_vllm_accepts_itself_after_a_responder_that_left_much_in_both_directions():
    """uvloop reports an unread heartbeat as an error of the connection, and calls back only once."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)

    async def run() -> None:
        server = _server_answering(200)
        server.started, server.main_loop = True, None
        responder: Any = SimpleNamespace(keep=lambda: ours, kill=lambda: None)
        probes = ServingProbes(responder)
        theirs.send(ACCEPTING)
        loop = asyncio.get_running_loop()
        await probes.start(server, lambda: loop.create_server(asyncio.Protocol, sock=listener), lambda: None)
        while not select.select([theirs], [], [], 0)[0]:
            await asyncio.sleep(0.01)
        for _ in range(100):
            theirs.send(AnsweredProbe("a", "/health", "1.1", "200").encode())
        theirs.close()
        async with asyncio.timeout(60):
            await probes.end()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        probes._created.server.close()

    with socket.socket() as listener, ours, theirs:
        listener.bind(("127.0.0.1", 0))
        uvloop.run(run())


async def test_the_task_that_waits_for_outputs_ends_before_it_learns_that_the_engine_is_stopped():
    outputs: asyncio.Queue[str] = asyncio.Queue()
    seen: list[str] = []

    async def handle() -> None:
        seen.append(await outputs.get())

    loop, handler = asyncio.get_running_loop(), asyncio.create_task(handle())
    await asyncio.sleep(0)
    client = SimpleNamespace(output_handler=handler)

    def shutdown(self: object, timeout: float | None) -> None:
        loop.call_soon_threadsafe(outputs.put_nowait, "the engine is dead")

    await asyncio.to_thread(_end_handler_first(shutdown), client, timeout=1)
    await asyncio.wait([handler])
    assert handler.cancelled()
    assert (seen, client.output_handler) == ([], None)


_WITH_FROZEN_HEAP = """
import gc
from startup.imports.finder import place
from startup.vllm.patches.graphs.cuda_graphs import FROZEN_HEAP
place(FROZEN_HEAP)
from vllm.utils.gc_utils import freeze_gc_for_cudagraph_capture
imported = [[]]
gc.collect()
gc.freeze()
with freeze_gc_for_cudagraph_capture():
    pass
assert not any(each is imported for each in gc.get_objects())
gc.unfreeze()
assert any(each is imported for each in gc.get_objects()), "other code can still unfreeze the heap"
"""


def test_after_a_capture_of_graphs_the_collector_still_does_not_visit_imported_objects():
    python_output(_WITH_FROZEN_HEAP, environment={"PYTHONPATH": f"{FAKE}:{_ROOT}"})


_COMPILER = """
import gc

class TorchCompileWithNoGuardsWrapper:
    def aot_compile(self, *args):
        self.was_collecting = gc.isenabled()
        return [[args]]
"""
_COMPILING = """
import gc
from startup.imports.finder import place
from startup.vllm.patches.graphs.cuda_graphs import FROZEN_COMPILER
place(FROZEN_COMPILER)
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper as Model
model = Model()
for enable in (gc.enable, gc.disable):
    enable()
    before = gc.isenabled()
    compiled = model.aot_compile("input")
    assert (model.was_collecting, gc.isenabled()) == (False, before)
    assert not any(each is compiled for each in gc.get_objects()), "later collections visit it"
"""


def test_nothing_is_collected_during_a_compilation_and_its_objects_are_not_visited_later(toys, tmp_path):
    toys.write("vllm.compilation.wrapper", _COMPILER)
    python_output(_COMPILING, environment={"PYTHONPATH": f"{tmp_path}:{_ROOT}"})


@pytest.fixture
def start_with_graphs(toys: ToyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """A function that starts a worker. Returns the memory that it has assumed, and how often it has measured.

    The graphs take `captured` bytes. If it is None, the start ends before the capture. `first`: the bytes of
    the graphs that are captured before readiness.
    """
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(FAKE)
    place(GRAPH_MEMORY)
    runners: Any = importlib.import_module("vllm.v1.worker.gpu.model_runner")
    importlib.import_module("vllm.v1.worker.startup_plan")
    importlib.import_module("vllm.distributed.parallel_state")
    state = cuda_graphs._State

    def start(captured: int | None, rank: int = 0, first: int | None = None) -> list[int]:
        monkeypatch.setattr(cuda_graphs, "_State", type("_State", (state,), {}))
        config = SimpleNamespace(
            parallel_config=SimpleNamespace(
                rank=rank, world_size=2, data_parallel_index=0, disable_custom_all_reduce=False
            ),
            compilation_config=SimpleNamespace(
                cudagraph_mode="FULL", cudagraph_capture_sizes=[1, 2], cudagraph_num_of_warmups=1
            ),
            scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=64),
            cache_config=SimpleNamespace(cache_dtype="auto"),
            lora_config=None,
            speculative_config=None,
        )
        runner = runners.GPUModelRunner(config)
        found = [runner.profile_cudagraph_memory(), runner.num_measured]
        if first is not None:
            cuda_graphs.compare_later()
            runner.captured_bytes = first
            cuda_graphs.compare_first(runner.capture_model())
            if captured is not None:
                cuda_graphs.compare(captured)
        elif captured is not None:
            runner.captured_bytes = captured
            runner.capture_model()
        return found

    return start


_SIZE = 1 << 30


def test_the_memory_of_graphs_is_measured_once_and_again_if_they_take_other_memory(start_with_graphs):
    assert start_with_graphs(_SIZE) == [1000, 1]
    assert start_with_graphs(_SIZE) == [1000, 0]
    assert start_with_graphs(_SIZE, rank=1) == [1000, 1], "each rank has its own"
    assert start_with_graphs(2 * _SIZE) == [1000, 0]
    assert start_with_graphs(2 * _SIZE) == [1000, 1], "the start before has noticed the difference"
    assert start_with_graphs(2 * _SIZE) == [1000, 0]


def test_a_server_that_ends_before_all_graphs_are_captured_has_measured_for_later_starts(start_with_graphs):
    assert start_with_graphs(None, first=_SIZE) == [1000, 1]
    assert start_with_graphs(None, first=_SIZE) == [1000, 0]
    assert start_with_graphs(3 * _SIZE, first=_SIZE) == [1000, 0]
    assert start_with_graphs(None, first=2 * _SIZE) == [1000, 0]
    assert start_with_graphs(3 * _SIZE, first=_SIZE) == [1000, 1], "the first graphs were larger"
    assert start_with_graphs(4 * _SIZE, first=_SIZE) == [1000, 0]
    assert start_with_graphs(None, first=_SIZE) == [1000, 1], "all graphs were larger"


@pytest.mark.parametrize("captured", [None, -1], ids=["before the capture", "out of memory"])
def test_a_start_that_fails_with_a_remembered_memory_of_graphs_makes_the_next_start_measure(
    captured, start_with_graphs
):
    for num_measured in (1, 0):
        assert start_with_graphs(_SIZE) == [1000, num_measured]
    with suppress(MemoryError):
        start_with_graphs(captured)
    for num_measured in (1, 0):
        assert start_with_graphs(_SIZE) == [1000, num_measured]


def test_the_memory_of_graphs_is_measured_again_with_a_variable_that_can_change_it(start_with_graphs, monkeypatch):
    for name in ("VLLM_USE_TRITON_AWQ", "PYTORCH_ALLOC_CONF", "TORCH_NCCL_USE_COMM_NONBLOCKING", "NCCL_BUFFSIZE",
                 "CUDA_MODULE_LOADING", "CUBLAS_WORKSPACE_CONFIG", "HSA_ENABLE_SDMA"):  # fmt: skip
        monkeypatch.setenv(name, "1")
        assert start_with_graphs(_SIZE) == [1000, 1]
    for name, value in {"CUDA_VISIBLE_DEVICES": "3", "VLLM_PORT": "99", "VLLM_LOGGING_LEVEL": "DEBUG"}.items():
        monkeypatch.setenv(name, value)
        assert start_with_graphs(_SIZE) == [1000, 0]


_TRITON_CACHE = """
from pathlib import Path
num_computed = 0
def triton_key():
    global num_computed
    num_computed += 1
    return (Path(__file__).parents[1] / "language" / "core.py").read_text().strip()
"""


def test_the_hash_of_tritons_files_is_computed_again_only_if_one_has_changed(toys, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    toys.write("triton.runtime.cache", _TRITON_CACHE)
    for text in ("first", "the second"):
        toys.write("triton.language.core", text)
        for num_computed in (1, 0):
            for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
                del sys.modules[name]
            place(TRITON_KEY)
            cache: Any = importlib.import_module("triton.runtime.cache")
            assert (cache.triton_key(), cache.triton_key(), cache.num_computed) == (text, text, num_computed)


def test_a_test_library_that_was_loaded_is_not_loaded_again(tmp_path):
    probed: list[str] = []

    def load(isa: object, library: str) -> bool:
        probed.append(library)
        return "bad" not in library

    libraries = [str(tmp_path / name) for name in ("good.so", "bad.so", "absent/good.so")]
    probe = _cached_probe(load)
    assert [[probe(None, library) for _ in range(2)] for library in libraries] == [[True] * 2, [False] * 2, [True] * 2]
    assert [probed.count(library) for library in libraries] == [1, 2, 2], "no mark can be written into a missing folder"
    assert VECTOR_PROBES.changes


@pytest.mark.parametrize("root", ["", "/base"])
async def test_livez_and_readyz_are_answered_behind_a_root_path_also_while_it_drains(root):
    """uvicorn puts the root path before each path."""

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["path"], scope["raw_path"]) == (f"{root}/health", b"/health")
        await Response(status_code=200)(scope, receive, send)

    async def status(path: str) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": root + path, "raw_path": path.encode(), "root_path": root}
        await app(scope, lambda: None, send)
        return int(sent[0]["status"])

    app = DrainedApp(vllm)
    assert [await status(path) for path in ("/livez", "/readyz", "/health")] == [200, 200, 200]
    app.lifecycle.drain()
    assert [await status(path) for path in ("/livez", "/readyz", "/health")] == [200, 503, 503]


@pytest.mark.parametrize(
    "value",
    [
        {"x": [{"api_key": "hidden-word"}], "auth": {"user": "hidden-word"}, "key": ["hidden-word"]},
        {
            "u": ["https://me:hidden-word@h/"],
            "https://me:hidden-word@h/": 1,
            "header": "Authorization: Bearer hidden-word",
        },
        {"a": {"b": '{"c": {"secret": "hidden-word"}}'}},
        {"arguments": ["serve", "--api-key", "hidden-word", "--port", "1"]},
    ],
    ids=["keys", "texts", "JSON in JSON", "arguments"],
)
def test_a_record_of_a_compiled_model_has_no_secrets_and_all_else(value):
    rest = {"i": [1, None, 2.5, "b c", ["d=e"]], "f": {"g": "--max-len 8", "h": True}, "url": "https://h/?x=1;y=2"}
    shown = _without_secrets("", value | rest)
    assert "hidden-word" not in json.dumps(shown)
    assert shown | rest == shown
