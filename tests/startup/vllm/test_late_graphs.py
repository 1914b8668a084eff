"""When the loop of an engine captures the next CUDA graph, and which one."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from base.lifecycle import GRAPHS_CAPTURED, GRAPHS_TOTAL
from startup.vllm.patches import late_graphs
from startup.vllm.patches.late_graphs import _KeptMemory, _Pace, _Worker
from startup.vllm.serving.graph_progress import GraphProgress, read_progress, stop_capturing
from startup.vllm.serving.start_metrics import GraphFigures


class _Graphs:
    """A model runner's graphs, largest first."""

    def __init__(self, sizes: list[int]) -> None:
        self.used: list[Any] = []
        kinds = (("PIECEWISE", False), ("FULL", True))
        self.every = [
            (mode, SimpleNamespace(num_tokens=size, uniform=is_uniform)) for mode, is_uniform in kinds for size in sizes
        ]

    def use(self, graphs: list[Any]) -> None:
        self.used = [*graphs]


class _Executor:
    """The workers of an engine. Each call reaches all of them."""

    is_sleeping = False

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers
        self.calls: list[str] = []

    def collective_rpc(self, _: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        self.calls.append(args[0])
        return [getattr(worker, args[0])(*args[1:]) for worker in self._workers]

    def execute_model(self, output: Any) -> None:
        """Runs a batch."""


class _Engine:
    """An EngineCore with vLLM's loop."""

    process_input_queue_block = True

    def __init__(self, workers: list[_Worker]) -> None:
        self.model_executor = _Executor(workers)
        self.input_queue: queue.Queue[Any] = queue.Queue()
        self.batch_queue: deque[Any] | None = None
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(rank=0, data_parallel_index=0))
        self.works = self.sleeps = self.stops = False

    def has_work(self) -> bool:
        return self.works

    def is_running(self) -> bool:
        return not self.stops

    def is_sleeping(self) -> bool:
        return self.sleeps

    def _process_input_queue(self) -> None:
        """vLLM waits here for requests if `process_input_queue_block` is set."""

    def _handle_client_request(self, kind: Any, request: Any) -> None:
        """vLLM calls this for each request."""


@pytest.fixture
def captured(monkeypatch) -> list[Any]:
    """The graphs in the order of their capture. A worker that is named in `failing` fails."""
    order: list[Any] = []

    def capture(worker: _Worker, graph: Any) -> None:
        if worker in failing:
            raise MemoryError("out of memory")
        order.append((graph[0], graph[1].num_tokens))

    monkeypatch.setattr(_Worker, "_capture_one", capture)
    manager = SimpleNamespace(lock=lambda: None)
    monkeypatch.setattr(late_graphs, "_WORKSPACE_MANAGER", SimpleNamespace(get=lambda: lambda: manager))
    return order


failing: list[_Worker] = []


@pytest.fixture
def engine(captured, monkeypatch, tmp_path) -> _Engine:
    monkeypatch.setenv("VCLI_START_FOLDER", str(tmp_path))
    monkeypatch.setattr(late_graphs, "_IDLE_S", 0.01)
    failing.clear()
    engine = _Engine([_Worker(_Graphs([16, 8, 4, 2]), lambda: 0) for _ in range(2)])  # type: ignore[arg-type]
    _Pace(engine).begin()
    return engine


def test_an_idle_engine_captures_decode_graphs_and_then_the_others_smallest_first(engine, captured, tmp_path):
    while not engine.process_input_queue_block or len(captured) < 12:
        engine._process_input_queue()
    expected = [*(("FULL", size) for size in (2, 4, 8)), *(("PIECEWISE", size) for size in (2, 4, 8))]
    assert captured[::2] == captured[1::2] == expected, "both ranks capture the same"
    assert read_progress(tmp_path)[:2] == (8, 8)
    assert "_process_input_queue" not in vars(engine), "vLLM's own method is back"


@pytest.mark.parametrize(
    ("num_tokens", "first"),
    [
        ((1,) * 3, ("FULL", 4)),
        ((1,) * 8, ("FULL", 8)),
        ((5, 1), ("PIECEWISE", 8)),
        ((1,) * 9, ("FULL", 2)),
        ((9,), ("FULL", 2)),
        ((40,), ("FULL", 2)),
    ],
    ids=["padded decode", "decode", "mixed", "decode with a graph", "mixed with a graph", "too large"],
)
def test_the_graph_for_the_latest_batch_comes_first(engine, captured, num_tokens, first):
    scheduled = {str(number): tokens for number, tokens in enumerate(num_tokens)}
    output = SimpleNamespace(total_num_scheduled_tokens=sum(num_tokens), num_scheduled_tokens=scheduled)
    engine.model_executor.execute_model(output)
    engine._process_input_queue()
    assert captured[0] == first


def test_with_requests_the_next_capture_waits_although_the_loop_goes_on(engine, captured, monkeypatch):
    monkeypatch.setattr(late_graphs, "_GAP_S", 600.0)
    engine.works = True
    for _ in range(1000):
        engine._process_input_queue()
    assert len(captured) == 2, "one graph on two ranks"


def test_between_two_requests_the_engine_is_not_idle(engine, captured, monkeypatch):
    for name in ("_GAP_S", "_IDLE_S"):
        monkeypatch.setattr(late_graphs, name, 600.0)
    engine.works = True
    engine._process_input_queue()
    engine.works = False
    engine.input_queue.put("request")
    engine._process_input_queue()
    assert len(captured) == 2
    engine.input_queue.get()
    threading.Timer(0.02, engine.input_queue.put, ["request"]).start()
    engine._process_input_queue()
    assert len(captured) == 2, "the request has ended the wait for idleness"


@pytest.mark.parametrize("state", ["sleeps", "stops"])
def test_an_engine_that_sleeps_or_ends_captures_nothing_and_blocks(engine, captured, state):
    setattr(engine, state, True)
    engine._process_input_queue()
    assert (captured, engine.process_input_queue_block) == ([], True)
    engine._handle_client_request(b"", "wake_up")
    assert not engine.process_input_queue_block, "the loop comes back after a request"
    setattr(engine, state, False)
    engine._process_input_queue()
    assert captured


def test_nothing_is_captured_during_the_drain(engine, captured, tmp_path):
    stop_capturing(tmp_path)
    engine._process_input_queue()
    assert captured == []


def test_outputs_of_running_batches_are_read_before_a_capture(engine, captured):
    """A thread that waits for an output uses the GPU, which a capture forbids."""

    class Output(Future[None]):
        def result(self, timeout: float | None = None) -> None:
            assert captured == []
            outputs.append("read")
            raise RuntimeError("the next step raises this")

    outputs: list[str] = []
    engine.batch_queue = deque([(Output(), None, None)])
    engine._process_input_queue()
    assert (outputs, len(captured)) == (["read"], 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_failure_on_one_rank_no_rank_uses_the_graph_and_no_more_are_captured(engine, captured, tmp_path, rank):
    engine._process_input_queue()
    workers = engine.model_executor._workers
    failing.append(workers[rank])
    engine._process_input_queue()
    assert [len(worker._graphs.used) for worker in workers] == [3, 3]
    assert engine.model_executor.calls == ["progress", "capture_next", "use_captured", "capture_next"]
    assert read_progress(tmp_path) == (3, 3, True, "MemoryError: out of memory")
    engine._process_input_queue()
    assert len(captured) == 3
    assert engine.process_input_queue_block


def test_an_engine_whose_workers_have_no_late_graphs_is_not_changed():
    engine = _Engine([])
    engine.model_executor.collective_rpc = lambda *words, **options: [None, None]  # type: ignore[method-assign]
    before = dict(vars(engine))
    _Pace(engine).begin()
    assert vars(engine) == before


def test_a_replaced_workspace_is_kept():
    workspaces = _KeptMemory([None, None])
    old, new = object(), object()
    for value in (old, None, new):
        workspaces[0] = value
    assert (list(workspaces), old in workspaces.kept) == ([new, None], True)


@pytest.fixture
def exported() -> Iterator[Callable[[], list[float | None]]]:
    """A function that reads the exported numbers of captured and of all graphs."""
    before = {*REGISTRY._names_to_collectors.values()}
    yield lambda: [REGISTRY.get_sample_value(metric[0]) for metric in (GRAPHS_CAPTURED, GRAPHS_TOTAL)]
    for collector in {*REGISTRY._names_to_collectors.values()} - before:
        REGISTRY.unregister(collector)


@pytest.mark.parametrize(
    ("failure", "complete", "message"),
    [
        ("", {"state": "complete"}, "all 8 CUDA graphs are captured, "),
        (
            "no memory",
            {"state": "incomplete", "reason": "no memory"},
            "only 8 CUDA graphs are captured, and batches of other sizes run without: a ",
        ),
    ],
)
def test_metrics_ps_and_log_follow_all_engines(exported, monkeypatch, tmp_path, caplog, failure, complete, message):
    monkeypatch.setenv("VCLI_START_FOLDER", str(tmp_path))
    caplog.set_level("INFO")
    notes: list[Any] = []
    figures = GraphFigures(tmp_path, notes.append)
    assert figures.update() is None
    for engine in range(2):
        GraphProgress(engine, 5, is_late=True).write(engine)
    assert figures.update() == (1, 10, True, "")
    assert exported() == [1, 10]
    following = threading.Thread(target=figures.follow)
    following.start()
    GraphProgress(5, 5, is_late=True).write(0)
    GraphProgress(3, 3, is_late=True, failure=failure).write(1)
    following.join()
    assert exported() == [8, 8]
    assert notes[-1] == {**complete, "captured": 8, "total": 8}
    [record] = caplog.records
    assert record.getMessage().startswith(message)
    assert failure in record.getMessage()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"captured": 1}', '{"captured": 1, "total": 2, "more": 3}'])
def test_a_damaged_file_is_no_progress(tmp_path, content):
    (tmp_path / "cuda-graphs-0.json").write_text(content)
    assert read_progress(tmp_path) is None


def test_graphs_that_are_captured_before_readiness_are_not_logged(exported, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("VCLI_START_FOLDER", str(tmp_path))
    caplog.set_level("INFO")
    GraphProgress(102, 102).write(0)
    GraphFigures(tmp_path, lambda _: None).follow()
    assert exported() == [102, 102]
    assert caplog.records == []
