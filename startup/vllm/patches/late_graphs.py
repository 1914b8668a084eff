"""Lets vLLM serve before its CUDA graphs are captured. They are captured afterwards, between two steps.

vLLM captures about a hundred graphs before it is ready, although its model answers without graphs, too. With
this module, vLLM captures only the largest graph of each mode before it is ready. Later captures then reuse
the memory and the buffers of the largest ones. A batch whose graph is not captured yet runs as vLLM runs it
without graphs.

The workers (`_Worker`) capture, and the loop of EngineCore (`_Pace`) decides when. Each capture is a call to
all workers between the same two steps, so all ranks capture the same graph. No rank uses the graph before all
ranks have captured it.

- While no request runs for `_IDLE_S`, graphs are captured one after the other, until a request arrives.
- Otherwise, a capture follows `_SHARE` times its duration, and at least `_GAP_S`, after the one
  before. So a token waits for one capture at most, and captures take at most a tenth of the time.
- The graphs for the latest batches come first, then those for few tokens.
- vLLM's estimate of the graphs' memory is taken off before the KV cache is sized. Where vLLM makes no
  estimate, and with the features that `early_graphs` lists, graphs are captured before vLLM is ready.
- If a capture fails, the engine keeps the graphs that it has, and captures no more.

vLLM locks its workspace after the last capture, because graphs contain its address. Here, the workspace stays
unlocked in between. If it grows, the older memory stays allocated for the graphs that contain its address.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from startup.ground.hooks.hook import Hook, Name, Text
from startup.imports.finder import replaced, wraps
from startup.vllm.patches import cuda_graphs
from startup.vllm.patches.early_graphs import ENVS, ESTIMATE, PLATFORM, why_config, why_runner
from startup.vllm.probes.graph_progress import GraphProgress, is_stopped

logger = logging.getLogger(__name__)

_RUNNERS: Final = ("vllm.v1.worker.gpu.model_runner", "vllm.v1.worker.gpu_model_runner")
_MANAGER: Final = "vllm.v1.worker.gpu.cudagraph_utils"
_DISPATCHER: Final = "vllm.v1.cudagraph_dispatcher"
_CORE: Final = "vllm.v1.engine.core"
_WORKSPACE: Final = "vllm.v1.worker.workspace"
_CAPTURES: Final = tuple(Name(runner, "GPUModelRunner.capture_model", ()) for runner in _RUNNERS)
_ESTIMATES: Final = tuple(Name(runner, "GPUModelRunner.profile_cudagraph_memory", ()) for runner in _RUNNERS)
_LOOP: Final = Name(_CORE, "EngineCoreProc.run_busy_loop", ())
_STREAM: Final = Name("vllm.distributed.parallel_state", "GraphCaptureContext", ("stream",))
_GRAPH_CAPTURE: Final = Name("vllm.distributed.parallel_state", "graph_capture", ("device",))
_ENABLE: Final = Name("vllm.compilation.monitor", "set_cudagraph_capturing_enabled", ("enabled",))
_WORKSPACE_MANAGER: Final = Name(_WORKSPACE, "current_workspace_manager", ())
_OF_LOOP: Final = (
    "_process_input_queue", "_handle_client_request", "has_work", "is_running", "is_sleeping", "batch_queue",
)  # fmt: skip
LATE_GRAPHS: Final = Hook(
    "late CUDA graphs",
    does="captures most CUDA graphs while vLLM serves, between two steps of an engine",
    without="vLLM captures all graphs before it is ready",
    gain="0.83 (0.83–0.84) of a compiled start of the CUDA build, on a stand-in for the GPU",
    needs=(
        *(*_CAPTURES, *_ESTIMATES, _LOOP, _STREAM, _GRAPH_CAPTURE, _ENABLE, _WORKSPACE_MANAGER, ENVS, PLATFORM),
        *(Name(_WORKSPACE, f"WorkspaceManager.{name}") for name in ("lock", "unlock", "_current_workspaces")),
        *(Name(_MANAGER, f"CudaGraphManager.{name}") for name in ("_capture_descs", "_candidates", "capture")),
        *(Name(_DISPATCHER, f"CudagraphDispatcher.{name}") for name in ("cudagraph_keys", "get_capture_descs")),
        *(Name(_CORE, f"EngineCoreProc.{name}") for name in _OF_LOOP),
        Text((_CORE,), r"block = self\.process_input_queue_block\n", "process_input_queue_block"),
        Text((_WORKSPACE,), r"self\._current_workspaces\[workspace_id\] = None", "growth of the workspace"),
    ),
    since=(0, 33),
    places={"forkserver", "template"},
)

_SHARE: Final = 10.0
_GAP_S: Final = 0.5
_IDLE_S: Final = 0.1
_MOST_BATCHES: Final = 8
_FEWEST: Final = 3
"""If there are fewer graphs, none is captured late."""
_SPARE_BYTES: Final = 64 << 20

Graph: TypeAlias = tuple[Any, Any]
"""vLLM's mode (PIECEWISE or FULL), and the descriptor of the batches that can use the graph."""
_Batch: TypeAlias = tuple[int, bool]
"""The number of a batch's tokens, and whether each request has one token."""


class _Reply(NamedTuple):
    """A worker's answer to a call."""

    captured: int
    total: int
    error: str = ""


# In the workers


class _NewRunner:
    """The graphs of vLLM's newer model runner, which has its captured graphs in a CudaGraphManager."""

    module = _MANAGER

    def __init__(self, runner: Any) -> None:
        self._manager = runner.cudagraph_manager
        self._descs = dict(self._manager._capture_descs)
        self._candidates = dict(self._manager._candidates)
        self._capture: Callable[[], None]

    def find(self) -> list[Graph]:
        return [(mode, desc) for mode, descs in self._descs.items() for desc in descs]

    @contextmanager
    def only(self, graphs: Sequence[Graph]) -> Iterator[None]:
        capture = self._manager.capture

        def capture_only(*words: Any, **options: Any) -> None:
            self._capture = lambda: capture(*words, **options)
            self._capture_only(graphs)

        self._manager.capture = capture_only
        try:
            yield
        finally:
            del self._manager.capture

    def capture(self, graph: Graph) -> None:
        self._capture_only([graph])

    def _capture_only(self, graphs: Sequence[Graph]) -> None:
        self._manager._capture_descs = {mode: [desc for other, desc in graphs if other == mode] for mode, _ in graphs}
        try:
            self._capture()
        finally:
            self._manager._capture_descs = self._descs

    def use(self, graphs: Sequence[Graph]) -> None:
        usable = {desc for _, desc in graphs}
        self._manager._candidates = {
            key: [desc for desc in descs if desc in usable] for key, descs in self._candidates.items()
        }


class _OldRunner:
    """The graphs of vLLM's older model runner, whose dispatcher has a key for each usable graph."""

    module = _RUNNERS[1]

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._graphs = [
            (mode, desc) for mode, descs in runner.cudagraph_dispatcher.get_capture_descs() for desc in descs
        ]

    def find(self) -> list[Graph]:
        return self._graphs

    @contextmanager
    def only(self, graphs: Sequence[Graph]) -> Iterator[None]:
        self.use(graphs)
        yield

    def capture(self, graph: Graph) -> None:
        mode, desc = graph
        keys = self._runner.cudagraph_dispatcher.cudagraph_keys[mode]
        keys.add(desc)
        _ENABLE.get()(True)
        try:
            with _GRAPH_CAPTURE.get()(device=self._runner.device):
                self._runner._capture_cudagraphs([desc], cudagraph_runtime_mode=mode)
        finally:
            _ENABLE.get()(False)
            keys.discard(desc)

    def use(self, graphs: Sequence[Graph]) -> None:
        keys = self._runner.cudagraph_dispatcher.cudagraph_keys
        for mode, usable in keys.items():
            usable.clear()
            usable.update(desc for other, desc in graphs if other == mode)


_Runner: TypeAlias = _NewRunner | _OldRunner


class _Worker:
    """The graphs of this worker's process."""

    current: ClassVar["_Worker | None"] = None
    """None unless this process captures graphs late."""

    def __init__(self, runner: Any, graphs: _Runner) -> None:
        self._runner = runner
        self._graphs = graphs
        every = graphs.find()
        self._captured: list[Graph] = list(dict(reversed(every)).items())
        self._missing = [graph for graph in every if graph not in self._captured]
        self._missing.sort(key=lambda graph: (not _is_decode(graph), graph[1].num_tokens))
        self._bytes = 0
        self._most_bytes = 0

    def capture_largest(self, capture: Callable[[], int]) -> int:
        """Captures the largest graph of each mode. Returns the memory that all graphs may need."""
        _keep_one_stream()
        with self._graphs.only(self._captured):
            self._bytes = capture()
        self._graphs.use(self._captured)
        manager = _WORKSPACE_MANAGER.get()()
        manager.unlock()
        manager._current_workspaces = _KeptMemory(manager._current_workspaces)
        return max(self._bytes, cuda_graphs.expected_bytes() or getattr(self._runner, ESTIMATE))

    def capture_next(self, batches: Sequence[_Batch]) -> _Reply:
        """Captures the graph that these batches need most. It is used after `use_captured`."""
        graph = next(filter(None, map(self._find_missing, batches)), None) or self._missing[0]
        try:
            self._capture(graph)
        except Exception as err:
            logger.debug("a capture failed", exc_info=True)
            cuda_graphs.forget()
            return self.reply(f"{type(err).__name__}: {err}".partition("\n")[0])
        self._missing.remove(graph)
        self._captured.append(graph)
        return self.reply()

    def use_captured(self) -> None:
        """Makes batches use all captured graphs."""
        self._graphs.use(self._captured)

    def finish(self) -> None:
        """Does what vLLM does after its last capture."""
        _WORKSPACE_MANAGER.get()().lock()
        cuda_graphs.compare(self._bytes)

    def reply(self, error: str = "") -> _Reply:
        return _Reply(len(self._captured), len(self._captured) + len(self._missing), error)

    def _find_missing(self, batch: _Batch) -> Graph | None:
        """The graph that the batch would use, unless it is captured."""
        num_tokens, is_decode = batch
        every = [graph for graph in (*self._captured, *self._missing) if graph[1].num_tokens >= num_tokens]
        is_decode = is_decode and any(map(_is_decode, every))
        kind = [graph for graph in every if _is_decode(graph) == is_decode]
        graph = min(kind, key=lambda graph: graph[1].num_tokens, default=None)
        return graph if graph in self._missing else None

    def _capture(self, graph: Graph) -> None:
        import torch  # noqa: PLC0415 - vLLM has imported it

        torch.accelerator.synchronize()
        torch.accelerator.empty_cache()
        free_bytes = torch.accelerator.get_memory_info()[0]
        if free_bytes < _SPARE_BYTES + 2 * self._most_bytes:
            raise MemoryError(f"only {free_bytes >> 20} MiB of the device's memory are free")
        was_enabled = gc.isenabled()
        gc.disable()  # a collection may invalidate the capture
        try:
            with torch.inference_mode(), _without_bars(self._graphs.module):
                self._graphs.capture(graph)
            torch.accelerator.synchronize()
        finally:
            if was_enabled:
                gc.enable()
        taken = max(0, free_bytes - torch.accelerator.get_memory_info()[0])
        self._bytes += taken
        self._most_bytes = max(self._most_bytes, taken)


class _KeptMemory(list[Any]):
    """vLLM's list of workspaces. Keeps replaced ones, whose addresses captured graphs contain."""

    kept: ClassVar[list[Any]] = []

    def __setitem__(self, index: Any, value: Any) -> None:
        self.kept.append(self[index])
        super().__setitem__(index, value)


def _is_decode(graph: Graph) -> bool:
    """Whether only batches with the same number of tokens in each request can use the graph."""
    desc = graph[1]
    return bool(getattr(desc, "uniform_token_count", None) or getattr(desc, "uniform", False))


@wraps(LATE_GRAPHS, *_ESTIMATES)
def _noting_estimate(profile: Callable[..., int]) -> Callable[..., int]:
    def profile_and_note(runner: Any) -> int:
        estimate = profile(runner)
        setattr(runner, ESTIMATE, estimate)
        return estimate

    return profile_and_note


@wraps(LATE_GRAPHS, *_CAPTURES)
def _capture_largest(capture: Callable[..., int]) -> Callable[..., int]:
    def capture_largest(runner: Any, **options: Any) -> int:
        if options.get("profile_only"):
            return capture(runner, **options)
        graphs = _NewRunner(runner) if hasattr(runner, "cudagraph_manager") else _OldRunner(runner)
        num_graphs = len(graphs.find())
        if (reason := why_runner(runner)) is not None or num_graphs < _FEWEST:
            logger.debug("CUDA graphs are captured before vLLM is ready: %s", reason)
            captured = capture(runner, **options)
            _note(runner.vllm_config, num_graphs, num_graphs, is_late=False)
            return captured
        worker = _Worker(runner, graphs)
        with cuda_graphs.compared_later():
            expected = worker.capture_largest(lambda: capture(runner, **options))
        _Worker.current = worker
        _note(runner.vllm_config, *worker.reply()[:2])
        return expected

    return capture_largest


def _note(config: Any, captured: int, total: int, failure: str = "", *, is_late: bool = True) -> None:
    if config.parallel_config.rank == 0 and total:
        GraphProgress(captured, total, is_late, failure).write(config.parallel_config.data_parallel_index)


def _without_bars(module: str) -> AbstractContextManager[None]:
    """Shows no progress bars for single graphs during the block."""
    return replaced(Name(module, "tqdm"), lambda _: lambda items, **options: items)


def _keep_one_stream() -> None:
    """From now on, captures use the same stream, because libraries keep memory for each stream."""
    context = _STREAM.get()
    streams: list[Any] = []

    def with_one_stream(stream: Any) -> Any:
        streams.append(stream)
        return context(streams[0])

    _STREAM.replace(_STREAM.loaded, with_one_stream)  # type: ignore[arg-type]


def _tell(_: Any, method: str, *words: Any) -> Any:
    """Calls a method of the `_Worker` in a worker's process. Returns None if there is none."""
    return getattr(_Worker.current, method)(*words) if _Worker.current is not None else None


# In EngineCore


@wraps(LATE_GRAPHS, _LOOP)
def _paced(run: Callable[[Any], None]) -> Callable[[Any], None]:
    def run_paced(engine: Any) -> None:
        if why_config(engine.vllm_config) is None:
            _Pace(engine).begin()
        run(engine)

    return run_paced


class _Pace:
    """Decides in the loop of an EngineCore when the next graph is captured."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._next_s = 0.0
        self._idle_s = time.monotonic()
        """When the engine was last found to have work."""
        self._batches: dict[_Batch, None] = {}
        """The latest batches. The newest one comes last."""

    def begin(self) -> None:
        """Replaces methods of the engine until all graphs are captured."""
        if None in self._call("reply"):
            return
        engine, executor = self._engine, self._engine.model_executor
        poll, handle, execute = engine._process_input_queue, engine._handle_client_request, executor.execute_model

        def poll_and_capture() -> None:
            engine.process_input_queue_block = not self._step()
            poll()

        def handle_and_return(*words: Any) -> None:
            handle(*words)
            engine.process_input_queue_block = False  # so that `poll_and_capture` decides again

        def execute_and_note(output: Any, *words: Any, **options: Any) -> Any:
            self._note_batch(output)
            return execute(output, *words, **options)

        engine._process_input_queue, engine._handle_client_request = poll_and_capture, handle_and_return
        executor.execute_model = execute_and_note

    def _end(self) -> None:
        engine = self._engine
        del engine._process_input_queue, engine._handle_client_request, engine.model_executor.execute_model

    def _note_batch(self, output: Any) -> None:
        num_tokens = output.total_num_scheduled_tokens
        if num_tokens:
            batch = (num_tokens, num_tokens == len(output.num_scheduled_tokens))
            self._batches.pop(batch, None)
            self._batches[batch] = None
            if len(self._batches) > _MOST_BATCHES:
                del self._batches[next(iter(self._batches))]

    def _step(self) -> bool:
        """Captures a graph if it is time. Returns whether the engine's loop must come back at once."""
        engine = self._engine
        if not engine.is_running() or engine.is_sleeping():
            return False
        now_s = time.monotonic()
        if engine.has_work():
            self._idle_s = now_s
            is_due = now_s >= self._next_s
        else:
            is_due = self._stays_idle(min(self._idle_s + _IDLE_S, self._next_s) - now_s)
        if not is_due:
            return True
        return not is_stopped() and self._capture()

    def _stays_idle(self, wait_s: float) -> bool:
        """Whether no request arrives for this time."""
        requests = self._engine.input_queue
        with requests.not_empty:
            if wait_s > 0 and not requests._qsize():
                requests.not_empty.wait(wait_s)
            return not requests._qsize()

    def _capture(self) -> bool:
        """Captures the next graph on all ranks. Returns whether graphs are left."""
        begin_s = time.monotonic()
        for entry in self._engine.batch_queue or ():
            with suppress(Exception):  # which the engine's next step raises
                entry[0].result()  # no other thread may use the device during a capture
        replies = self._call("capture_next", list(reversed(self._batches)))
        end_s = time.monotonic()
        self._next_s = end_s + max(_GAP_S, _SHARE * (end_s - begin_s))
        captured, total, error = max(replies, key=lambda reply: bool(reply.error))
        if not error:
            self._call("use_captured")
        _note(self._engine.vllm_config, captured, captured if error else total, error)
        if not error and captured < total:
            return True
        if not error:
            self._call("finish")
        self._end()
        return False

    def _call(self, *words: Any) -> list[Any]:
        replies: list[Any] = self._engine.model_executor.collective_rpc(_tell, args=words)
        return replies
