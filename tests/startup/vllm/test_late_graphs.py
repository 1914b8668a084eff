"""When the loop of an engine captures the next CUDA graph, and which one."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from base.lifecycle import GRAPHS_CAPTURED, GRAPHS_GIVEN_UP, GRAPHS_TOTAL
from startup.storage.caches import CachedValue
from startup.vllm.patches.graphs import late_graphs
from startup.vllm.patches.graphs.capture_mark import CaptureMark
from startup.vllm.patches.graphs.late_graphs import _KeptMemory, _Pace, _Worker
from startup.vllm.serving.start_metrics import (
    GraphFigures,
    GraphProgress,
    forget_captures,
    read_progress,
    stop_capturing,
)
from tests.support.cli import run_python


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
    """The workers of an engine. Each call reaches all of them, on threads of their own."""

    is_sleeping = False

    def __init__(self, workers: list[_Worker | None]) -> None:
        self._workers = workers
        self.calls: list[str] = []

    def collective_rpc(self, _: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        self.calls.append(args[0])
        with ThreadPoolExecutor(len(self._workers)) as pool:
            return [*pool.map(lambda worker: worker and worker.answer(*args), self._workers)]

    def execute_model(self, output: Any) -> None:
        """Runs a batch."""


class _Engine:
    """An EngineCore with vLLM's loop."""

    process_input_queue_block = True

    def __init__(self, workers: list[_Worker | None]) -> None:
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


class _Ranks:
    """The faults of ranks, and what they have captured. A capture waits until all ranks capture."""

    def __init__(self) -> None:
        self.captured: list[tuple[str, int]] = []
        self.free_mib: dict[_Worker, int] = {}
        self.errors: dict[_Worker, Exception] = {}
        self.barrier = threading.Barrier(2)

    def capture(self, worker: _Worker, graph: Any) -> None:
        if worker in self.errors:
            raise self.errors[worker]
        self.barrier.wait(30)
        self.captured.append((graph[0], graph[1].num_tokens))

    def find_shortage(self, worker: _Worker) -> str:
        return "" if (free_mib := self.free_mib.get(worker, 64)) >= 64 else f"only {free_mib} MiB"


@pytest.fixture
def ranks(monkeypatch, tmp_path) -> _Ranks:
    ranks = _Ranks()
    monkeypatch.setenv("VCLI_START_FOLDER", str(tmp_path))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    manager = SimpleNamespace(lock=lambda: None)
    monkeypatch.setattr(late_graphs, "_WORKSPACE_MANAGER", SimpleNamespace(get=lambda: lambda: manager))
    monkeypatch.setattr(late_graphs, "_IDLE_S", 0.01)
    monkeypatch.setattr(late_graphs, "_end_later", lambda: None)
    monkeypatch.setattr(late_graphs, "find_mark", lambda _: _MARK)
    monkeypatch.setattr(_Worker, "_capture_one", lambda worker, graph: ranks.capture(worker, graph))
    monkeypatch.setattr(_Worker, "give_up", lambda _: None)  # which asks the device
    monkeypatch.setattr(_Worker, "find_shortage", lambda worker: ranks.find_shortage(worker))
    return ranks


_MARK = CaptureMark(CachedValue("graph-memory", "test"))


def _worker(num_ranks: int) -> _Worker:
    config = SimpleNamespace(parallel_config=SimpleNamespace(world_size=num_ranks))
    return _Worker(_Graphs([16, 8, 4, 2]), lambda: 0, config)  # type: ignore[arg-type]


def _engine(num_ranks: int) -> _Engine:
    return _Engine([_worker(num_ranks) for _ in range(num_ranks)])


def _start(num_ranks: int) -> _Engine:
    engine = _engine(num_ranks)
    _Pace(engine).begin()
    return engine


@pytest.fixture
def engine(ranks) -> _Engine:
    return _start(num_ranks=2)


def _capture_all(engine: _Engine) -> None:
    while "_process_input_queue" in vars(engine):
        engine._process_input_queue()


def test_an_idle_engine_captures_decode_graphs_and_then_the_others_smallest_first(engine, ranks, tmp_path):
    while not engine.process_input_queue_block or len(ranks.captured) < 12:
        engine._process_input_queue()
    expected = [*(("FULL", size) for size in (2, 4, 8)), *(("PIECEWISE", size) for size in (2, 4, 8))]
    assert ranks.captured[::2] == ranks.captured[1::2] == expected, "both ranks capture the same"
    assert read_progress(tmp_path)[:2] == (8, 8)
    assert "_process_input_queue" not in vars(engine), "vLLM's own method is back"
    assert _MARK.failure() is None


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
def test_the_graph_for_the_latest_batch_comes_first(engine, ranks, num_tokens, first):
    scheduled = {str(number): tokens for number, tokens in enumerate(num_tokens)}
    output = SimpleNamespace(total_num_scheduled_tokens=sum(num_tokens), num_scheduled_tokens=scheduled)
    engine.model_executor.execute_model(output)
    engine._process_input_queue()
    assert ranks.captured[0] == first


def test_with_requests_the_next_capture_waits_although_the_loop_goes_on(engine, ranks, monkeypatch):
    monkeypatch.setattr(late_graphs, "_GAP_S", 600.0)
    engine.works = True
    for _ in range(1000):
        engine._process_input_queue()
    assert len(ranks.captured) == 2, "one graph on two ranks"


def test_between_two_requests_the_engine_is_not_idle(engine, ranks, monkeypatch):
    for name in ("_GAP_S", "_IDLE_S"):
        monkeypatch.setattr(late_graphs, name, 600.0)
    engine.works = True
    engine._process_input_queue()
    engine.works = False
    engine.input_queue.put("request")
    engine._process_input_queue()
    assert len(ranks.captured) == 2
    engine.input_queue.get()
    threading.Timer(0.02, engine.input_queue.put, ["request"]).start()
    engine._process_input_queue()
    assert len(ranks.captured) == 2, "the request has ended the wait for idleness"


@pytest.mark.parametrize("state", ["sleeps", "stops"])
def test_an_engine_that_sleeps_or_ends_captures_nothing_and_blocks(engine, ranks, state, tmp_path):
    setattr(engine, state, True)
    engine._process_input_queue()
    assert (ranks.captured, engine.process_input_queue_block) == ([], True)
    engine._handle_client_request(b"", "wake_up")
    assert not engine.process_input_queue_block, "the loop comes back after a request"
    setattr(engine, state, False)
    engine._process_input_queue()
    assert ranks.captured
    before = [*ranks.captured]
    stop_capturing(tmp_path)  # the drain
    engine._process_input_queue()
    assert ranks.captured == before


def test_outputs_of_running_batches_are_read_before_a_capture(engine, ranks):
    """A thread that waits for an output uses the GPU, which a capture forbids."""

    class Output(Future[None]):
        def result(self, timeout: float | None = None) -> None:
            assert ranks.captured == []
            outputs.append("read")
            raise RuntimeError("the next step raises this")

    outputs: list[str] = []
    engine.batch_queue = deque([(Output(), None, None)])
    engine._process_input_queue()
    assert (outputs, len(ranks.captured)) == (["read"], 2)


def test_the_pauses_grow_while_memory_is_short(ranks, monkeypatch, tmp_path):
    """With a clock that only the waits move."""
    clock = [1000.0]
    checks: list[float] = []
    monkeypatch.setattr(late_graphs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(_Worker, "find_shortage", lambda _: checks.append(clock[0]) or "no memory")
    engine = _start(num_ranks=1)
    engine.works = True
    while len(checks) < 9:
        engine._process_input_queue()
        clock[0] += 0.5
    assert [after - before for before, after in pairwise(checks)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert read_progress(tmp_path).is_pending


def test_a_single_rank_without_memory_in_a_capture_keeps_its_graphs(ranks, tmp_path):
    ranks.barrier = threading.Barrier(1)
    engine = _start(num_ranks=1)
    engine._process_input_queue()
    ranks.errors[engine.model_executor._workers[0]] = MemoryError("out of memory")
    engine._process_input_queue()
    assert read_progress(tmp_path) == (3, 8, True, 5, "MemoryError: out of memory")
    assert "_process_input_queue" not in vars(engine), "vLLM's own method is back"
    assert _MARK.failure() == "a capture after readiness failed (MemoryError: out of memory)"


_HANGING = """
import threading
from types import SimpleNamespace
from startup.vllm.patches.graphs import late_graphs
late_graphs._MOST_CAPTURE_S = 0.01
late_graphs._Pace(SimpleNamespace(
    model_executor=SimpleNamespace(collective_rpc=lambda *words, **options: threading.Event().wait())
)).begin()
"""


def test_a_call_that_does_not_return_ends_the_engine():
    """In a program of its own, because it ends."""
    done = run_python(_HANGING)
    assert done.returncode == 1
    assert done.stderr == "a capture of CUDA graphs after readiness does not end: the engine ends\n"


@pytest.mark.parametrize("is_told_to_end", [True, False], ids=["told to end", "dies"])
def test_an_engine_that_dies_before_its_last_capture_is_remembered(ranks, monkeypatch, is_told_to_end):
    monkeypatch.setattr(late_graphs, "why_config", lambda _: None)

    def run(engine: Any) -> None:
        engine._process_input_queue()
        raise SystemExit if is_told_to_end else ValueError("no kernel")

    with pytest.raises((SystemExit, ValueError)):
        late_graphs._paced(run)(_engine(num_ranks=2))
    failure = _MARK.failure()
    assert failure is None if is_told_to_end else "before all of them were captured, ValueError: no kernel" in failure


def test_a_failed_capture_is_remembered_although_the_server_stops_on_purpose_later(ranks, tmp_path):
    ranks.barrier = threading.Barrier(1)
    engine = _start(num_ranks=1)
    ranks.errors[engine.model_executor._workers[0]] = MemoryError("out of memory")
    engine._process_input_queue()
    forget_captures(tmp_path)
    assert str(_MARK.failure()).startswith("a capture after readiness failed")


@pytest.mark.parametrize("late_ranks", [(0,), (1,), ()])
def test_unless_all_ranks_capture_after_readiness_the_engine_is_not_changed(ranks, tmp_path, late_ranks):
    engine = _Engine([_worker(2) if rank in late_ranks else None for rank in range(2)])
    before = dict(vars(engine))
    _Pace(engine).begin()
    assert vars(engine) == before
    progress = read_progress(tmp_path)
    assert bool(progress) == bool(late_ranks)
    assert progress is None or progress.to_fields() == {
        "captured": 2,
        "total": 8,
        "state": "incomplete",
        "reason": "not all ranks capture graphs after readiness",
    }


@pytest.mark.parametrize(
    ("free_mib", "shortage"), [(263, "only 263 of 264 MiB of the device's memory are free"), (264, "")]
)
def test_a_rank_needs_room_for_twice_its_largest_graph(monkeypatch, free_mib, shortage):
    monkeypatch.setattr(late_graphs, "find_mark", lambda _: _MARK)
    calls = []
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.accelerator, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (free_mib << 20, 1 << 40))
    worker = _worker(1)
    worker._most_bytes = 100 << 20
    assert worker.find_shortage() == shortage
    assert calls == ["synchronize", "empty_cache"]


def test_a_replaced_workspace_is_kept():
    workspaces = _KeptMemory([None, None])
    old, new = object(), object()
    for value in (old, None, new):
        workspaces[0] = value
    assert (list(workspaces), old in workspaces.kept) == ([new, None], True)


_METRICS = (GRAPHS_CAPTURED, GRAPHS_TOTAL, GRAPHS_GIVEN_UP)


@pytest.fixture
def exported() -> Iterator[Callable[[], list[float | None]]]:
    """A function that reads the exported numbers of captured graphs, of all, and of those given up."""
    before = {*REGISTRY._names_to_collectors.values()}
    yield lambda: [REGISTRY.get_sample_value(metric[0]) for metric in _METRICS]
    for collector in {*REGISTRY._names_to_collectors.values()} - before:
        REGISTRY.unregister(collector)


@pytest.mark.parametrize(
    ("last", "metrics", "shown", "message"),
    [
        (
            GraphProgress(5, 5, is_late=True),
            [10, 10, 0],
            {"captured": 10, "total": 10, "state": "complete"},
            "all 10 CUDA graphs are captured, ",
        ),
        (
            GraphProgress(3, 5, is_late=True, num_given_up=2, reason="no memory"),
            [8, 10, 2],
            {"captured": 8, "total": 10, "state": "incomplete", "reason": "no memory"},
            "only 8 of 10 CUDA graphs are captured, and batches of other sizes run without: no memory",
        ),
    ],
    ids=["all", "a failure"],
)
def test_metrics_ps_and_log_follow_all_engines(exported, monkeypatch, tmp_path, caplog, last, metrics, shown, message):
    monkeypatch.setenv("VCLI_START_FOLDER", str(tmp_path))
    caplog.set_level("INFO")
    notes: list[Any] = []
    figures = GraphFigures(tmp_path, notes.append)
    assert figures.update() is None
    GraphProgress(0, 5, is_late=True).write(0)
    last.write(1)
    assert figures.update().is_pending
    assert exported() == [metrics[0] - 5, *metrics[1:]]
    following = threading.Thread(target=figures.follow)
    following.start()
    GraphProgress(5, 5, is_late=True).write(0)
    following.join()
    assert exported() == metrics
    assert notes[-1] == shown
    [record] = caplog.records
    assert record.getMessage().startswith(message)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"captured": 1}', '{"captured": 1, "total": 2, "more": 3}'])
def test_a_damaged_file_is_no_progress(tmp_path, content):
    (tmp_path / "cuda-graphs-0.json").write_text(content)
    assert read_progress(tmp_path) is None


def test_graphs_that_are_captured_before_readiness_are_not_logged(exported, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("VCLI_START_FOLDER", str(tmp_path))
    caplog.set_level("INFO")
    GraphProgress(102, 102).write(0)
    GraphFigures(tmp_path, lambda _: None).follow()
    assert exported() == [102, 102, 0]
    assert caplog.records == []
