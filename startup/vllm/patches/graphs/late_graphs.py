"""Lets vLLM serve before its CUDA graphs are captured. They are captured afterwards, between two steps.

Before readiness, vLLM captures only the largest graph of each mode, whose memory and buffers later captures
reuse. A batch whose graph is not captured yet runs as vLLM runs it without graphs.

The workers (`_Worker`) capture, and the loop of EngineCore (`_Pace`) decides when. Ranks wait for each other
during a capture. So `_Pace` calls all workers three times between the same two steps. First, each rank checks
its memory, and none captures if one has too little. Then all capture. At last, all use the graph.

- Once no request has run for `_IDLE_S` and for the time of a capture, graphs are captured one after another.
  A request ends this.
- Otherwise, a capture waits `_SHARE` times its duration after the one before, and at least `_GAP_S`. So a
  token waits for one capture at most, and captures take at most a tenth of the time.
- While a rank has too little memory, the check is repeated after growing pauses.
- The graphs for the latest batches come first, then those for few tokens.
- vLLM's estimate of the graphs' memory is taken off before the KV cache is sized. Without an estimate, graphs
  are captured before vLLM is ready. The same holds for the features that `early_graphs` lists.
- If the only rank runs out of memory in a capture, the engine keeps the graphs that it has, and captures no
  more. After any other failure, the engine ends, because the error may stay, and ranks may differ.
- If a capture fails, or if the engine dies in one, this is remembered for a week (`capture_mark`). Meanwhile,
  starts with the same settings capture all graphs before vLLM is ready.
- vLLM locks its workspace after each call, because graphs contain its address. Here, it is unlocked until the
  last capture. If it grows, the older memory stays allocated for the graphs that contain its address.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from envs.registry import env
from startup.hook import Hook, Name, Text
from startup.imports.distributions import distribution_stamps
from startup.imports.finder import replaced, wraps
from startup.processes.group_signals import start_thread
from startup.storage.caches import CachedValue
from startup.vllm.patches.engine_idle import BLOCK, CORE, OF_LOOP, call_between_steps, stays_idle
from startup.vllm.patches.graphs import cuda_graphs
from startup.vllm.patches.graphs.capture_mark import REMEMBERED_S, CaptureMark
from startup.vllm.patches.graphs.early_graphs import ENVS, ESTIMATE, PLATFORM, why_config, why_runner
from startup.vllm.patches.ranks import WORLD, first_of_all_ranks
from startup.vllm.serving.start_metrics import GraphProgress, is_stopped

logger = logging.getLogger(__name__)

_RUNNERS: Final = ("vllm.v1.worker.gpu.model_runner", "vllm.v1.worker.gpu_model_runner")
_FAILURES: Final = "late-captures"
"""The cache folder with failures of this machine."""
_MANAGER: Final = "vllm.v1.worker.gpu.cudagraph_utils"
_DISPATCHER: Final = "vllm.v1.cudagraph_dispatcher"
_WORKSPACE: Final = "vllm.v1.worker.workspace"
_CAPTURES: Final = tuple(Name(runner, "GPUModelRunner.capture_model", ()) for runner in _RUNNERS)
_ESTIMATES: Final = tuple(Name(runner, "GPUModelRunner.profile_cudagraph_memory", ()) for runner in _RUNNERS)
_LOOP: Final = Name(CORE, "EngineCoreProc.run_busy_loop", ())
_STREAM: Final = Name("vllm.distributed.parallel_state", "GraphCaptureContext", ("stream",))
_WORKSPACE_MANAGER: Final = Name(_WORKSPACE, "current_workspace_manager", ())
_ALLOW_CAPTURES: Final = Name("vllm.compilation.monitor", "set_cudagraph_capturing_enabled", ("enabled",))
LATE_GRAPHS: Final = Hook(
    "late CUDA graphs",
    does="captures most CUDA graphs while vLLM serves, between two steps of an engine",
    without="vLLM captures all graphs before it is ready. So do vLLM 0.29 to 0.32, on whose CUDA builds this hook has "
    "not been tried",
    promise="`--cuda-graphs after-ready`",
    needs=(
        *(*_CAPTURES, *_ESTIMATES, _LOOP, _STREAM, _WORKSPACE_MANAGER, WORLD, _ALLOW_CAPTURES, ENVS, PLATFORM),
        *(Name(_WORKSPACE, f"WorkspaceManager.{name}") for name in ("lock", "unlock", "_current_workspaces")),
        *(Name(_MANAGER, f"CudaGraphManager.{name}") for name in ("_capture_descs", "_candidates")),
        *(Name(_DISPATCHER, f"CudagraphDispatcher.{name}") for name in ("cudagraph_keys", "get_capture_descs")),
        *OF_LOOP,
        Name(CORE, "EngineCoreProc.batch_queue"),
        BLOCK,
        Text(_WORKSPACE, r"self\._current_workspaces\[workspace_id\] = None", "growth of the workspace"),
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
_RETRY_S: Final = (1.0, 60.0)
"""The first and the longest pause while too little memory is free. Each pause doubles the one before."""
_MOST_CAPTURE_S: Final = 60.0
"""If a call to the workers takes longer, some of them hang."""
_REPLY_S: Final = 5.0
"""A rank that has failed ends after this time, because others may wait for it."""
_MEMORY_ALLOCATION: Final = 2
"""CUDA's number of the error for exhausted memory."""

Graph: TypeAlias = tuple[Any, Any]
"""vLLM's mode (PIECEWISE or FULL), and the descriptor of the batches that can use the graph."""
_Batch: TypeAlias = tuple[int, bool]
"""The number of a batch's tokens, and whether each request has one token."""


# In the workers


class _NewRunner:
    """The graphs of vLLM's newer model runner, whose CudaGraphManager has them in two lists."""

    modules = (_MANAGER, _RUNNERS[0])
    """The modules with vLLM's progress bar for captures, and with its log line after them."""

    def __init__(self, runner: Any) -> None:
        self._manager = runner.cudagraph_manager
        self._candidates = self._manager._candidates
        by_mode = self._manager._capture_descs.items()
        self.every = [(mode, desc) for mode, descs in by_mode for desc in descs]

    def select(self, graphs: Sequence[Graph]) -> None:
        """Makes `capture_model` capture these graphs."""
        by_mode: dict[Any, list[Any]] = {}
        for mode, desc in graphs:
            by_mode.setdefault(mode, []).append(desc)
        self._manager._capture_descs = by_mode

    def use(self, graphs: Sequence[Graph]) -> None:
        """Makes batches use these graphs."""
        usable = {desc for _, desc in graphs}
        self._manager._candidates = {
            key: [desc for desc in descs if desc in usable] for key, descs in self._candidates.items()
        }


class _OldRunner:
    """The graphs of vLLM's older model runner, whose dispatcher has one list of them."""

    modules = (_RUNNERS[1], _RUNNERS[1])

    def __init__(self, runner: Any) -> None:
        dispatcher = runner.cudagraph_dispatcher
        self._keys = dispatcher.cudagraph_keys
        self.every = [(mode, desc) for mode, descs in dispatcher.get_capture_descs() for desc in descs]

    def use(self, graphs: Sequence[Graph]) -> None:
        for mode, usable in self._keys.items():
            usable.clear()
            usable.update(desc for other, desc in graphs if other == mode)

    select = use


class LateCaptureError(RuntimeError):
    """Graphs could not be captured after readiness, and the engine must end."""


class _Failure(NamedTuple):
    """Why a rank could not carry out a call."""

    reason: str
    is_out_of_memory: bool
    """Whether only memory was missing, so that the device can still be used."""


class _Worker:
    """The graphs of this worker's process."""

    current: ClassVar["_Worker | None"] = None
    """None unless this process captures graphs late."""

    def __init__(self, graphs: _NewRunner | _OldRunner, capture: Callable[[], int], config: Any) -> None:
        """`capture` captures the selected graphs, and returns the memory that they take."""
        self._graphs = graphs
        self._capture_selected = capture
        self._mark = find_mark(config)
        self._num_ranks = config.parallel_config.world_size
        self._captured: list[Graph] = list(dict(reversed(graphs.every)).items())
        self._missing = [graph for graph in graphs.every if graph not in self._captured]
        self._missing.sort(key=lambda graph: (not _is_decode(graph), graph[1].num_tokens))
        self._bytes = self._most_bytes = self._limit_bytes = 0

    def capture_largest(self, estimate: int) -> int:
        """Captures the largest graph of each mode. Returns the memory that all graphs may need."""
        _keep_one_stream()
        cuda_graphs.compare_later()
        self._bytes = self._capture(self._captured)
        manager = _WORKSPACE_MANAGER.get()()
        manager._current_workspaces = _KeptMemory(manager._current_workspaces)
        self._limit_bytes = max(self._bytes, cuda_graphs.compare_first(self._bytes) or estimate)
        return self._limit_bytes

    def begin(self) -> CaptureMark | None:
        """The mark of this engine, which EngineCore writes."""
        return self._mark

    def find_shortage(self) -> str:
        """Why this rank has too little memory for a capture. Empty if it has enough."""
        import torch  # noqa: PLC0415 - vLLM has imported it

        torch.accelerator.synchronize()
        torch.accelerator.empty_cache()
        free_bytes = torch.accelerator.get_memory_info()[0]
        needed_bytes = _SPARE_BYTES + 2 * self._most_bytes
        missing = f"only {free_bytes >> 20} of {needed_bytes >> 20} MiB of the device's memory are free"
        return missing if free_bytes < needed_bytes else ""

    def capture_next(self, batches: Sequence[_Batch]) -> None:
        """Captures the graph that these batches need most. It is used after `use_captured`."""
        graph = next(filter(None, map(self._find_missing, batches)), None) or self._missing[0]
        self._capture_one(graph)
        self._missing.remove(graph)
        self._captured.append(graph)

    def use_captured(self) -> None:
        """Makes batches use all captured graphs. After the last capture, does what vLLM does then."""
        self._graphs.use(self._captured)
        if not self._missing:
            _WORKSPACE_MANAGER.get()().lock()
            cuda_graphs.compare(self._bytes)

    def give_up(self) -> None:
        """Captures no more. Raises an error if the device can no longer be used."""
        import torch  # noqa: PLC0415 - vLLM has imported it

        torch.accelerator.synchronize()

    def answer(self, method: str, *words: Any) -> Any:
        """Calls this method. Returns an error as a failure, because EngineCore decides for all ranks."""
        try:
            return getattr(self, method)(*words)
        except Exception as err:
            logger.warning("a capture of CUDA graphs after readiness has failed", exc_info=True)
            cuda_graphs.forget()
            if self._num_ranks > 1:
                start_thread("vllm-graph-failure", _end_later)
            return _Failure(_describe(err), _is_out_of_memory(err))

    def progress(self) -> GraphProgress:
        num_captured = len(self._captured)
        return GraphProgress(num_captured, num_captured + len(self._missing), is_late=True)

    def _find_missing(self, batch: _Batch) -> Graph | None:
        """The graph that the batch would use, unless it is captured."""
        num_tokens, is_decode = batch
        every = [graph for graph in (*self._captured, *self._missing) if graph[1].num_tokens >= num_tokens]
        is_decode = is_decode and any(map(_is_decode, every))
        kind = [graph for graph in every if _is_decode(graph) == is_decode]
        graph = min(kind, key=lambda graph: graph[1].num_tokens, default=None)
        return graph if graph in self._missing else None

    def _capture_one(self, graph: Graph) -> None:
        import torch  # noqa: PLC0415 - vLLM has imported it

        with _silent(*self._graphs.modules):
            taken = min(self._capture([graph]), self._limit_bytes)  # vLLM counts what other processes take meanwhile
        torch.accelerator.synchronize()
        self._bytes += taken
        self._most_bytes = max(self._most_bytes, taken)

    def _capture(self, graphs: Sequence[Graph]) -> int:
        """Captures graphs. Batches use the same ones as before, and the workspace can grow."""
        self._graphs.select(graphs)
        try:
            return max(0, self._capture_selected())
        finally:
            if isinstance(self._graphs, _OldRunner):
                _ALLOW_CAPTURES.get()(False)  # which this runner leaves allowed after a failure
            self.use_captured()
            _WORKSPACE_MANAGER.get()().unlock()


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
        num_graphs, config = len(graphs.every), runner.vllm_config
        if _why_early(runner, num_graphs):
            captured = capture(runner, **options)
            _note(config, GraphProgress(num_graphs, num_graphs))
            return captured
        worker = _Worker(graphs, lambda: capture(runner, **options), config)
        expected = worker.capture_largest(getattr(runner, ESTIMATE))
        _Worker.current = worker
        _note(config, worker.progress())
        return expected

    return capture_largest


def find_mark(config: Any) -> CaptureMark:
    """The mark, on all ranks, which says that late captures with this configuration have failed."""
    key = ("late", cuda_graphs.graph_key(config, 0))
    return CaptureMark(CachedValue(_FAILURES, key, distribution_stamps(), REMEMBERED_S))


def _why_early(runner: Any, num_graphs: int) -> str:
    """Why all ranks capture their graphs before vLLM is ready. Empty if they capture them late."""
    config, failure = runner.vllm_config, None
    if (reason := why_config(config)) is None:
        failure = find_mark(config).failure()
        own = f"in an earlier start, {failure}" if failure else why_runner(runner)
        own = own or ("there are few" if num_graphs < _FEWEST else "")
        reason = first_of_all_ranks(own)
    if reason and config.parallel_config.rank == 0:
        is_reported = failure or env.VCLI_CUDA_GRAPHS.get() == "after-ready"
        text = "CUDA graphs are captured before vLLM is ready: %s"
        logger.log(logging.WARNING if is_reported else logging.DEBUG, text, reason)
    return reason


def _note(config: Any, progress: GraphProgress) -> None:
    if config.parallel_config.rank == 0 and progress.total:
        progress.write(config.parallel_config.data_parallel_index)


@contextmanager
def _silent(bars: str, logs: str) -> Iterator[None]:
    """Shows no progress bars and no log lines for single graphs during the block."""
    log = logging.getLogger(logs)
    log.disabled = True
    try:
        with replaced(Name(bars, "tqdm"), lambda _: lambda items, **options: items):
            yield
    finally:
        log.disabled = False


def _keep_one_stream() -> None:
    """From now on, captures use the same stream, because libraries keep memory for each stream."""
    context = _STREAM.get()
    streams: list[Any] = []

    def with_one_stream(stream: Any) -> Any:
        streams.append(stream)
        return context(streams[0])

    _STREAM.replace(_STREAM.loaded, with_one_stream)  # type: ignore[arg-type]


def _describe(err: BaseException) -> str:
    """The error, and those before it: what a capture does at its end may fail, too."""
    text = f"{type(err).__name__}: {err}".partition("\n")[0]
    return f"{text}, after {_describe(err.__context__)}" if err.__context__ else text


def _is_out_of_memory(err: Exception) -> bool:
    import torch  # noqa: PLC0415 - vLLM has imported it

    number = getattr(err, "error_code", None)
    return isinstance(err, MemoryError | torch.OutOfMemoryError) or number == _MEMORY_ALLOCATION


def _end_later() -> None:
    time.sleep(_REPLY_S)
    os._exit(1)


def _tell(_: Any, method: str, *words: Any) -> Any:
    """Calls a method of the `_Worker` in a worker's process. Returns None if there is none."""
    return _Worker.current and _Worker.current.answer(method, *words)


# In EngineCore


@wraps(LATE_GRAPHS, _LOOP)
def _paced(run: Callable[[Any], None]) -> Callable[[Any], None]:
    def run_paced(engine: Any) -> None:
        pace = _Pace(engine)
        if why_config(engine.vllm_config) is None:
            pace.begin()
        try:
            run(engine)
        except Exception as err:
            pace.note_end(err)
            raise

    return run_paced


class _OutOfMemoryError(Exception):
    """The only rank lacked memory for a graph."""


class _Pace:
    """Decides in the loop of an EngineCore when the next graph is captured."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._mark: CaptureMark | None = None
        self._progress = GraphProgress(0, 0)
        self._took_s = 0.0
        """The duration of the latest capture."""
        self._next_s = 0.0
        """When the next graph is captured although requests run."""
        self._retry_s = 0.0
        """No graph is captured earlier, because too little memory was free."""
        self._pause_s = _RETRY_S[0]
        self._idle_s = time.monotonic()
        """When the engine was last found to have work."""
        self._batches: deque[_Batch] = deque(maxlen=_MOST_BATCHES)
        """The latest batches. The newest one comes first."""
        self._end_calls: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Captures between the engine's steps until all graphs are captured."""
        marks = self._call("begin")
        self._mark = next(filter(None, marks), None)
        if self._mark is None:
            return
        self._progress = next(filter(None, self._call("progress")))
        if None in marks:
            self._give_up("not all ranks capture graphs after readiness")
            return
        self._end_calls = call_between_steps(self._engine, self._step)
        executor = self._engine.model_executor
        execute = executor.execute_model

        def execute_and_note(output: Any, *words: Any, **options: Any) -> Any:
            self._note_batch(output)
            return execute(output, *words, **options)

        executor.execute_model = execute_and_note

    def note_end(self, err: Exception) -> None:
        """Called when an error ends the engine. Before the last capture, captures may have caused it."""
        if self._progress.is_pending and not isinstance(err, LateCaptureError):
            self._remember(f"the engine ended before all of them were captured, {_describe(err)}")

    def _note_batch(self, output: Any) -> None:
        num_tokens = output.total_num_scheduled_tokens
        if num_tokens:
            self._batches.appendleft((num_tokens, num_tokens == len(output.num_scheduled_tokens)))

    def _step(self) -> bool:
        """Captures a graph if it is time. Returns whether the engine's loop must come back at once."""
        engine = self._engine
        if not engine.is_running() or engine.is_sleeping():
            return False
        now_s = time.monotonic()
        if engine.has_work():
            self._idle_s = now_s
            is_due = now_s >= max(self._next_s, self._retry_s)
        else:
            idle_s = self._idle_s + max(_IDLE_S, self._took_s)
            is_due = stays_idle(engine.input_queue, max(min(idle_s, self._next_s), self._retry_s) - now_s)
        if not is_due:
            return True
        return not is_stopped() and self._capture()

    def _capture(self) -> bool:
        """Captures the next graph on all ranks. Returns whether graphs are left."""
        begin_s = time.monotonic()
        for entry in self._engine.batch_queue or ():
            with suppress(Exception):  # which the engine's next step raises
                entry[0].result()  # no other thread may use the device during a capture
        try:
            if shortage := next(filter(None, self._call("find_shortage")), ""):
                self._wait_for_memory(shortage)
                return True
            with self._mark.capturing() if self._mark is not None else nullcontext():
                self._call("capture_next", list(dict.fromkeys(self._batches)))
                self._call("use_captured")
        except _OutOfMemoryError as err:
            self._give_up(str(err))
        else:
            self._show(self._progress._replace(captured=self._progress.captured + 1, reason=""))
        end_s = time.monotonic()
        self._took_s, self._pause_s = end_s - begin_s, _RETRY_S[0]
        self._next_s = end_s + max(_GAP_S, _SHARE * self._took_s)
        if not self._progress.is_pending:
            self._end_calls()
            del self._engine.model_executor.execute_model
        return self._progress.is_pending

    def _wait_for_memory(self, shortage: str) -> None:
        if not self._progress.reason:
            logger.warning("no CUDA graph is captured for now: %s", shortage)
        self._show(self._progress._replace(reason=shortage))
        self._retry_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _RETRY_S[1])

    def _give_up(self, reason: str) -> None:
        self._call("give_up")
        progress = self._progress
        self._show(progress._replace(num_given_up=progress.total - progress.captured, reason=reason))

    def _show(self, progress: GraphProgress) -> None:
        """Shows the progress, and lets the mark follow it."""
        self._progress = progress
        _note(self._engine.vllm_config, progress)
        if progress.num_given_up:
            self._remember(progress.reason)
        elif not progress.is_pending and self._mark is not None:
            self._mark.forget()

    def _remember(self, failure: str) -> None:
        if self._mark is not None:
            self._mark.remember(f"a capture after readiness failed ({failure})")

    def _call(self, method: str, *words: Any) -> list[Any]:
        """Calls a method on all ranks, and returns their replies. Raises an error if one of them fails."""
        has_returned = threading.Event()
        start_thread("vllm-graph-capture", self._end_if_it_hangs, has_returned)
        try:
            replies: list[Any] = self._engine.model_executor.collective_rpc(_tell, args=(method, *words))
        finally:
            has_returned.set()
        failures = {rank: reply for rank, reply in enumerate(replies) if isinstance(reply, _Failure)}
        if not failures:
            return replies
        if len(replies) == 1 and failures[0].is_out_of_memory:
            raise _OutOfMemoryError(failures[0].reason)
        text = "; ".join(f"rank {rank}: {failure.reason}" for rank, failure in failures.items())
        self._remember(text)
        raise LateCaptureError(f"a capture of CUDA graphs after readiness has failed. {text}")

    def _end_if_it_hangs(self, has_returned: threading.Event) -> None:
        if not has_returned.wait(_MOST_CAPTURE_S):
            self._remember(f"no answer within {_MOST_CAPTURE_S:g} s")
            logger.error("a capture of CUDA graphs after readiness does not end: the engine ends")
            os._exit(1)
