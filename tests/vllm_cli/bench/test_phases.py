"""The phases of starts: from real logs in `start_logs`, and of servers that a benchmark starts.

A line in `start_logs` has the seconds since exec and a line of the log. The logs of vLLM 0.29, 0.32 and 0.33
come from real starts, without the lines that end no phase.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from tests.support.llamas import save_tiny_llama
from tests.support.properties import given, st
from vllm_cli.bench.phases import PHASES, StartLog, divide, ends_of_spans, follow_log, median_phases
from vllm_cli.bench.report import Metric, compare_rounds, percentile, summarize_rounds
from vllm_cli.bench.standby import find_template_kind, split_own_command

LOGS = Path(__file__).with_name("start_logs")
CASES = json.loads((LOGS / "phases.json").read_text())
QUICK = ("--rounds", "1", "--pause", "0", "--json", "-", "--phases")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StartLog]:
    """The log of an empty file."""
    path = tmp_path / "log"
    path.touch()
    with FileIO(path) as file:
        yield StartLog(file)


@pytest.mark.parametrize("name", CASES)
def test_lines_of_real_starts_end_the_phases(name, log):
    lines = (LOGS / f"{name}.log").read_text().splitlines()
    *moments, (first_token_s, _) = [(float(line[:8]), line[9:]) for line in lines]
    for seconds, line in moments:
        log.note(line, round(seconds * 1e9))
    phases_s = divide({name: end_ns / 1e9 for name, end_ns in log.ends_ns.items()}, first_token_s)
    assert {name: round(seconds, 2) for name, seconds in phases_s.items()} == CASES[name]
    assert sum(phases_s.values()) == pytest.approx(first_token_s)


def test_a_line_that_is_written_in_pieces_and_one_behind_a_progress_bar_end_a_phase(log, tmp_path):
    with (tmp_path / "log").open("ab", buffering=0) as written:
        written.write(b"(EngineCore pid=1) Initializing a V1")
        log.read()
        assert not log.ends_ns
        written.write(b" LLM engine (v0.32.0)\nLoading:  50%|\rStarting to load model M...\r")
    log.read()
    assert set(log.ends_ns) == {"engine process", "workers"}


INITIALIZED = "init engine (profile, create kv cache, warmup model) took 0.73 s"


def test_a_followed_log_is_read_to_its_end(tmp_path):
    path = tmp_path / "log"
    path.touch()
    with follow_log(path) as log:
        path.write_text(f"{INITIALIZED}\n")
    assert "CUDA graphs" in log.ends_ns


def test_all_captures_of_graphs_are_one_phase_and_what_is_between_them_is_warm_up(log):
    """vLLM 0.33 on a GPU captures graphs twice, and warms up kernels between the captures."""
    series = ["Capturing CUDA graphs (PIECEWISE):   0%|          | 0/51 [00:00<?, ?it/s]"] * 2
    series += ["Graph capturing finished in 2 secs, took 0.09 GiB"]
    for now_ns, line in zip((100, 110, 120, 150, 160, 190, 200), [*series, *series, INITIALIZED], strict=True):
        log.note(line, now_ns)
    assert log.ends_ns == {"compile and warm-up": 140, "CUDA graphs": 200}


def test_without_cuda_graphs_the_warm_up_lasts_until_the_last_engine_is_initialized(log):
    for now_ns in (5, 9):
        log.note(INITIALIZED, now_ns)
        assert log.ends_ns == {"compile and warm-up": now_ns, "CUDA graphs": now_ns}


def test_a_phase_without_an_end_is_part_of_the_next_one():
    assert divide({"imports": 2.0, "weights": 7.0}, 8.0) == {"imports": 2.0, "weights": 5.0, "first token": 1.0}


@given(st.dictionaries(st.sampled_from(PHASES[:-1]), st.floats(-1, 100)), st.floats(0, 50))
def test_phases_add_up_to_the_first_token_and_none_is_negative(ends_s, first_token_s):
    phases_s = divide(ends_s, first_token_s)
    assert sum(phases_s.values()) == pytest.approx(first_token_s)
    assert min(phases_s.values()) >= 0
    assert [name for name in PHASES if name in phases_s] == list(phases_s)


def test_the_last_span_of_a_phase_ends_it():
    spans_end_s = {"api:resolve_model": 0.3, "forkserver:preload_imports": 1.1, "api:preflight": 0.4, "api:other": 9.0}
    assert ends_of_spans(spans_end_s | {"engine:load_weights": 1.6}) == {
        **{"imports": 1.1, "configuration": 0.4, "weights": 1.6}
    }


def test_medians_are_those_of_the_rounds_that_have_the_phase():
    rounds = [{"phases_s": {"server": 1.0}}, {"phases_s": {"server": 3.0, "imports": 5.0}}]
    assert list(median_phases(rounds).items()) == [("imports", 5.0), ("server", 2.0)]


@pytest.mark.thorough
def test_phases_of_servers_with_and_without_such_lines(fake_command, invoke):
    script = "sleep 0.2; echo '(APIServer pid=1) version'; sleep 0.3; echo 'Initializing a V1 LLM engine'; exec "
    command = shlex.join(["sh", "-c", script + fake_command() + " --port {port}"])
    done = invoke("bench", "startup", "--cmd", command, "--vs", fake_command("--ready-ms", 200), *QUICK)
    assert done.returncode == 0, done.stderr
    (ours,), (theirs,) = (side["conditions"][0]["rounds"] for side in json.loads(done.stdout)["sides"])
    assert list(ours["phases_s"]) == ["imports", "configuration", "engine process", "server", "first token"]
    assert ours["phases_s"]["imports"] >= 0.2
    assert sum(ours["phases_s"][name] for name in PHASES[:3]) >= 0.5  # both lines may be read late
    assert list(theirs["phases_s"]) == ["server", "first token"]
    for figures in (ours, theirs):
        assert sum(figures["phases_s"].values()) == pytest.approx(figures["first_token_s"])
    assert "A  11" in done.stderr
    assert "B: server includes imports, configuration, engine process, workers, weights" in done.stderr


@pytest.mark.thorough
def test_phases_of_the_embedded_engine(invoke, tmp_path):
    command = [sys.executable, "-m", "vllm_cli", "serve", save_tiny_llama(tmp_path), "--engine", "embedded"]
    done = invoke("bench", "startup", "--cmd", shlex.join(map(str, command)), *QUICK)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout)["sides"][0]["conditions"][0]["rounds"]
    assert set(PHASES) - set(figures["phases_s"]) <= {"workers", "CUDA graphs"}
    assert sum(figures["phases_s"].values()) == pytest.approx(figures["first_token_s"])
    assert figures["phases_s"]["imports"] > 0  # a later phase may end before the one before it, and has 0 s then
    assert "1 imports" in done.stderr


METRICS = (Metric("first_token_s", "first token s"), Metric("num_refused", "probes refused", is_compared=False))


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        *(([50, 10, 40, 20, 30], *each) for each in ((0, 10), (25, 20), (50, 30), (90, 46), (99, 49.6), (100, 50))),
        ([7], 99, 7),
        ([], 50, None),
    ],
    ids=str,
)
def test_percentiles_lie_between_neighbours(values, percent, expected):
    assert percentile(values, percent) == pytest.approx(expected)


def test_rounds_have_medians_and_ratios_are_medians_of_round_ratios_and_not_ratios_of_medians():
    ours, theirs = (
        [{"first_token_s": value} for value in values] for values in ((10.0, 20.0, 90.0), (20.0, 10.0, 30.0))
    )
    spread = summarize_rounds(METRICS, theirs)["first_token_s"]
    assert (spread.median, spread.min, spread.max) == (20, 10, 30)
    spread = compare_rounds(METRICS, ours, theirs)["first_token_s"]
    assert (spread.median, spread.min, spread.max) == (2.0, 0.5, 3.0)


def test_a_figure_that_one_side_lacks_and_one_that_is_not_compared_have_no_ratio():
    ours, theirs = [{"first_token_s": None, "num_refused": 1}], [{"first_token_s": 1.0, "num_refused": 2}]
    assert compare_rounds(METRICS, ours, theirs) == compare_rounds(METRICS, theirs, ours) == {}
    assert set(summarize_rounds(METRICS, ours)) == {"num_refused"}


QUICK_START = ("--state", "standby", "--rounds", "1", "--pause", "0")
PROGRAM = (sys.executable, "-m", "vllm_cli")
SERVE = shlex.join([*PROGRAM, "serve"])


@pytest.fixture(scope="module")
def own_command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`vllm-cli serve` with a model that loads at once."""
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
    return f"{SERVE} {model} --served-model-name tiny --engine embedded"


@pytest.mark.slow
def test_warm_starts_beside_cold_ones_and_beside_another_program(own_command, fake_command, invoke):
    done = invoke(
        "bench", "startup", "--cmd", own_command, "--vs", fake_command(), *QUICK_START, "--state", "warm", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    ours, theirs = result["sides"]
    warm, cold = ours["conditions"]
    assert (warm["condition"], cold["condition"]) == ("from standby", "from warm")
    assert all("api:fork_from_standby" in figures["spans_end_s"] for figures in warm["rounds"])
    assert not any("api:fork_from_standby" in figures["spans_end_s"] for figures in cold["rounds"])
    assert ours["standby"]["num_starts"] == 2
    assert ours["standby"]["memory_bytes"] > 10_000_000
    assert "standby" not in theirs
    assert {ratio["condition"] for ratio in result["ratios"]} == {"from standby", "from warm"}
    assert "; standby: " in done.stderr
    assert result["problems"] == []


@pytest.mark.parametrize(
    ("script", "texts"),
    [
        pytest.param("[ $1 = serve ] && export OMP_DYNAMIC=true", ["OMP_DYNAMIC differs"], marks=pytest.mark.slow),
        pytest.param(
            "[ $1 = standby ] && [ $2 = --for ] && echo no imports today && exit 3",
            ["The standby of ", "no imports today"],
            marks=pytest.mark.thorough,
        ),
    ],
    ids=["start", "standby"],
)
def test_a_start_or_standby_that_cannot_be_warm_exits_with_3_and_the_reason(
    script, texts, own_command, invoke, tmp_path
):
    wrapper = tmp_path / "vllm-cli"
    wrapper.write_text(f'#!/bin/sh\n{script}; exec {sys.executable} -m vllm_cli "$@"\n')
    wrapper.chmod(0o755)
    command = own_command.replace(f"{sys.executable} -m vllm_cli", str(wrapper))
    done = invoke("bench", "startup", "--cmd", command, *QUICK_START)
    assert done.returncode == 3, done.stdout
    assert all(text in done.stderr for text in texts)


@pytest.mark.parametrize(
    ("command", "prefix", "kind"),
    [
        ("vllm serve DIR", [], None),
        ("transformers serve", [], None),
        ("vllm-cli wait serve", [], None),
        (f"{SERVE} DIR", [*PROGRAM], None),
        (f"A=1 {SERVE}", ["env", "A=1", *PROGRAM], None),
        (f"nice {sys.executable} -P -m vllm_cli serve", ["nice", sys.executable, "-P", "-m", "vllm_cli"], None),
        (f"{SERVE} --engine vllm", [*PROGRAM], "vllm-compiled"),
        (f"{SERVE} --engine=vllm --enforce-eager", [*PROGRAM], "vllm-eager"),
        (f"VCLI_ENGINE=vllm {SERVE}", ["env", "VCLI_ENGINE=vllm", *PROGRAM], "vllm-compiled"),
        (f"VCLI_ENGINE=vllm {SERVE} --engine embedded", ["env", "VCLI_ENGINE=vllm", *PROGRAM], "embedded"),
    ],
)
def test_commands_of_this_program_are_recognised_with_the_template_of_their_engine(command, prefix, kind):
    """If a command names no engine, the standby chooses the template."""
    found = split_own_command(command)
    assert found[0] == prefix
    assert not prefix or find_template_kind(*found) == kind
