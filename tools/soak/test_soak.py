"""`python -m tools.soak` on a small server with the faults that its flags ask for."""

import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from tools.soak.__main__ import soak as soak_command
from tools.soak.bodies import GOOD
from tools.soak.config import SoakConfig
from tools.soak.results import SoakResult

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
LEAKY_SERVER = Path(__file__).parent / "leaky_server.py"
QUICK = ("--minutes", 0.05, "--warm-up", "50%", "--sample-interval", 0.2, "--burst-interval", 0.4, "--concurrency", 4)
TOLERANT = ("--max-growth", "90%")
"""The memory of a new interpreter is not flat."""


def soak(*words: object, server: tuple[object, ...] = ()) -> subprocess.CompletedProcess[str]:
    served = shlex.join([sys.executable, str(LEAKY_SERVER), *map(str, server)])
    command = [sys.executable, "-m", "tools.soak", "--cmd", served, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)


def read(output: str) -> SoakResult:
    return msgspec.json.decode(output, type=SoakResult)


def test_a_server_without_leaks_passes_and_the_page_shows_it(tmp_path):
    html = tmp_path / "soak.html"
    done = soak(*QUICK, *TOLERANT, "--json", "-", "--html", html)
    assert done.returncode == 0, done.stderr
    assert "Fine: memory grew by less than" in done.stderr
    result = read(done.stdout)
    assert result.problems == []
    assert (result.model, result.settled_after_s is None) == ("leaky", False)
    assert {"template", "tokenize", "structure"} <= set(result.settings.left_out)
    assert [sample.stage for sample in result.samples] == sorted(
        (sample.stage for sample in result.samples), key=["warm-up", "rest", "load", "end"].index
    )
    assert {who for sample in result.samples for who in sample.groups} == {"server"}
    assert result.health.num_probes > 10
    for kind in ("completion", "chat", "bad JSON", "vanishing", "burst", "scrape"):
        assert result.endings[kind], kind
    assert sum(result.statuses.values()) > 50
    page = html.read_text()
    parser = HTMLParser()
    parser.feed(page)
    parser.close()
    assert page.count("<svg") == 5
    for title in ("RSS", "Open files", "Threads", "/health"):
        assert title in page
    assert "http://www" not in page


def test_leaks_are_found(tmp_path):
    leaks = ("--leaks-bytes", 1 << 18, "--leaks-files", "--leaks-threads", 5, "--keeps-running")
    done = soak(*QUICK, "--settle-timeout", 2, "--json", tmp_path / "soak.json", server=leaks)
    assert done.returncode == 1, done.stderr
    problems = "\n".join(read((tmp_path / "soak.json").read_text()).problems)
    grown = ("server: RSS grew by", "all processes: RSS grew by")
    for expected in (*grown, "open files in the end", "threads in the end"):
        assert expected in problems, problems
    assert "requests run in the end" in problems
    assert "Not fine: server: RSS grew by" in done.stdout
    assert "Fine:" not in done.stdout


@pytest.mark.slow
def test_failed_and_lost_requests_are_found():
    faults = ("--fails-every", 7, "--aborts-every", 5, "--errors-every", 11, "--unhealthy-after", 100)
    done = soak(*QUICK, *TOLERANT, "--json", "-", server=faults)
    assert done.returncode == 1, done.stderr
    result = read(done.stdout)
    for expected in ("ended with another error", "were lost", "/health were not answered"):
        assert any(expected in problem for problem in result.problems), result.problems
    assert result.statuses["500"] > 0
    assert any("HTTP 500" in message and "deliberate error" in message for message in result.messages)
    assert any("in a stream" in message for message in result.messages)


@pytest.mark.slow
def test_a_stream_that_ends_without_done_is_lost():
    done = soak(*QUICK, *TOLERANT, server=("--unfinished-every", 5))
    assert done.returncode == 1, done.stderr
    assert "requests were lost" in done.stdout
    assert "the stream ended after" in done.stdout


def test_a_server_that_exits_under_load_ends_the_run():
    done = soak(*QUICK, server=("--exits-after", 40))
    assert done.returncode == 1
    assert "The server ended with exit status 9" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_start_exits_with_3():
    done = soak("--minutes", 1, server=("--no-such-flag",))
    assert done.returncode == 3
    assert "unrecognized arguments" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "--minutes"),
        (["--warm-up", "95%"], "--warm-up must be at most 90%, got '95%'"),
        (["--max-growth", "-1"], "--max-growth"),
        (["--cmd", ""], "--cmd"),
        (["--html", "no-such-folder/x.html"], "is not a folder"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_invalid_options_are_a_usage_error(words, message):
    done = soak(*words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_options_have_the_defaults_of_the_configuration():
    options = {option.name: option for option in soak_command.params}
    for name, item in SoakConfig.__dataclass_fields__.items():
        if name in ("target", "api_key"):
            continue
        option = options[name]
        assert option.type.convert(option.default, None, None) == pytest.approx(item.default), name


def test_all_good_bodies_have_a_weight():
    from tools.soak.bodies import BAD
    from tools.soak.traffic import _WEIGHTS

    assert set(_WEIGHTS) == {*GOOD, *BAD}
