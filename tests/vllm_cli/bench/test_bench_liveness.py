"""`bench liveness` as a process, against real servers, one of which blocks its event loop."""

import base64
import io
import json
import re
from typing import get_args

import msgspec
import pytest
from PIL import Image

from tests.waiting import is_gone
from vllm_cli.bench.liveness.config import Kind, LivenessConfig, PayloadShape
from vllm_cli.bench.liveness.figures import LivenessFigures
from vllm_cli.bench.results import BenchResult, LoadedSide
from vllm_cli.commands import bench_liveness

pytestmark = pytest.mark.thorough

QUICK = ("--concurrency", "2", "--requests", "4", "--rounds", "1", "--turns", "3", "--turn-chars", "40")
EVERY_KIND = [word for kind in get_args(Kind) for word in ("--kind", kind)]


def read_result(text: str) -> BenchResult[LoadedSide[LivenessFigures]]:
    """Decoding is strict: an unknown or missing field fails."""
    return msgspec.json.decode(text, type=BenchResult[LoadedSide[LivenessFigures]])


def test_a_blocked_event_loop_shows_in_probes_and_in_the_servers_metrics(tiny_server, run_bench_liveness):
    server = tiny_server("--blocks-ms", 500, "--reports-lag")
    done = run_bench_liveness("--url", server.url, *QUICK, "--json", "-")
    assert done.returncode == 0, done.stderr
    (figures,) = read_result(done.stdout).sides[0].conditions[0].rounds
    assert figures.health_max_ms >= 400
    assert figures.loop_lag_max_ms >= 400
    assert figures.num_loop_lags_10ms >= figures.num_loop_lags_50ms >= 1
    assert figures.num_probes >= 50
    assert (figures.num_requests, figures.num_errors, figures.num_repeated) == (4, 0, 0)
    assert figures.latency_p50_ms >= 500
    assert figures.probe_lag_max_ms >= figures.probe_lag_p50_ms > 0


def test_a_server_without_blocking_requests_reports_its_own_lag(tiny_server, run_bench_liveness):
    """Delays of the warm-up are not counted in the round."""
    server = tiny_server("--reports-lag")
    done = run_bench_liveness("--url", server.url, *QUICK, "--kind", "chat", "--rounds", 2, "--json", "-")
    assert done.returncode == 0, done.stderr
    (kind,) = read_result(done.stdout).sides[0].conditions
    assert kind.condition == "chat"
    for figures in kind.rounds:
        assert figures.loop_lag_max_ms is not None
        assert figures.ttft_p50_ms > 0
        assert figures.num_probe_errors == 0


def test_a_server_without_lag_metrics_has_a_dash_in_the_table(tiny_server, run_bench_liveness):
    done = run_bench_liveness("--url", tiny_server("--reports-lag").url, "--vs-url", tiny_server().url, *QUICK)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("event loop lag max ms"))
    assert line.split()[-2:] == ["-", "-"]
    assert re.search(r"^event loop lag max ms +[\d.]+ ", line)


def test_every_kind_sends_the_requested_sizes_and_no_two_equal_requests(tiny_server, run_bench_liveness):
    server = tiny_server()
    shape = ("--image-px", 48, "--embed-rows", 12, "--embed-hidden", 6, "--batch", 3)
    done = run_bench_liveness("--url", server.url, *QUICK, *EVERY_KIND, *shape, "--max-tokens", 2)
    assert done.returncode == 0, done.stderr
    bodies: dict[str, list[dict]] = {}
    for path, body in zip(server.seen["paths"], server.seen["bodies"], strict=True):
        content = body["messages"][0]["content"] if "messages" in body else ""
        bodies.setdefault("images" if isinstance(content, list) else path, []).append(body)
    num_warm_up, num_measured = 4, 4
    assert {kind: len(found) for kind, found in bodies.items()} == dict.fromkeys(bodies, num_warm_up + num_measured)
    for path in ("/tokenize", "/v1/chat/completions"):
        conversations = [[turn["content"] for turn in body["messages"]] for body in bodies[path]]
        assert all([len(text) for text in texts] == [40, 40, 40] for texts in conversations)
        assert len({texts[0] for texts in conversations}) == len(conversations)
        assert {body["messages"][-1]["role"] for body in bodies[path]} == {"user"}
    addresses = [body["messages"][0]["content"][1]["image_url"]["url"] for body in bodies["images"]]
    images = [base64.b64decode(address.removeprefix("data:image/jpeg;base64,")) for address in addresses]
    assert len(set(images)) == len(images)
    assert {Image.open(io.BytesIO(image)).size for image in images} == {(48, 48)}
    texts = [text for body in bodies["/v1/embeddings"] for text in body["input"]]
    assert len(texts) == len(set(texts)) == 3 * (num_warm_up + num_measured)
    check_embeddings(bodies["/v1/completions"])
    streamed = [body for body in server.seen["bodies"] if "max_tokens" in body]
    assert len(streamed) == 3 * (num_warm_up + num_measured)
    assert all(body["stream"] and body["max_tokens"] == 2 for body in streamed)


def check_embeddings(bodies: list[dict]) -> None:
    import torch

    tensors = [torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True) for body in bodies]
    assert {(tuple(tensor.shape), tensor.dtype) for tensor in tensors} == {((12, 6), torch.bfloat16)}
    assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("idle", ["pause", "run", "stop"])
def test_both_sides_get_the_same_requests_in_alternating_rounds_and_exit(
    idle, tiny_command, run_bench_liveness, tmp_path
):
    pid_files = [tmp_path / "a", tmp_path / "b"]
    ours, theirs = (tiny_command("--pid-file", file) for file in pid_files)
    kinds = ("--kind", "tokenize-chat", "--kind", "chat")
    done = run_bench_liveness(
        "--cmd", ours, "--vs", theirs, "--idle", idle, *QUICK, *kinds, "--rounds", 2, "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    assert all(side.ready_after_s > 0 for side in result.sides)
    steps = re.findall(r"\] (\w): ([\w-]+), 2 at once, round (\d)", done.stderr)
    by_kind = [(name, kind, number) for kind in ("tokenize-chat", "chat") for number in "12" for name in "AB"]
    by_start = [(name, kind, number) for number in "12" for name in "AB" for kind in ("tokenize-chat", "chat")]
    assert steps == (by_start if idle == "stop" else by_kind)
    assert [(ratio.against, ratio.condition) for ratio in result.ratios] == [("B", "tokenize-chat"), ("B", "chat")]
    assert all("requests_per_s" in ratio.ratios for ratio in result.ratios)
    assert all(is_gone(int(pid)) for file in pid_files for pid in file.read_text().split())


def test_the_same_seed_gives_the_same_requests(tiny_server, run_bench_liveness):
    servers = [tiny_server(), tiny_server()]
    urls = ("--url", servers[0].url, "--vs-url", servers[1].url)
    assert run_bench_liveness(*urls, *QUICK).returncode == 0
    bodies = [sorted(map(json.dumps, server.seen["bodies"])) for server in servers]
    assert bodies[0] == bodies[1]


def test_a_server_that_only_embeds_can_be_measured(tiny_server, run_bench_liveness):
    server = tiny_server("--lacks", "/v1/completions", "/v1/chat/completions", "/tokenize")
    assert run_bench_liveness("--url", server.url, *QUICK, "--kind", "pooling").returncode == 0


def test_rejected_requests_are_counted_by_status_with_the_servers_message(tiny_server, run_bench_liveness):
    server = tiny_server("--fails-every", 3)
    done = run_bench_liveness("--url", server.url, *QUICK, "--kind", "chat", "--json", "-")
    assert done.returncode == 1
    rounds = read_result(done.stdout).sides[0].conditions[0].rounds
    failures = [failure for figures in rounds for failure in figures.failures]
    assert {(failure.status, failure.message, failure.is_accepted) for failure in failures} == {
        (400, "HTTP 400: deliberate error", False)
    }
    assert sum(failure.num for failure in failures) == sum(figures.num_errors for figures in rounds) >= 1
    assert re.search(r"A, chat, 2 at once: \d requests failed: HTTP 400: deliberate error", done.stderr)


def test_an_accepted_status_counts_as_served(tiny_server, run_bench_liveness):
    server = tiny_server("--fails-every", 2)
    done = run_bench_liveness("--url", server.url, *QUICK, "--kind", "chat", "--accept-status", 400, "--json", "-")
    assert done.returncode == 0, done.stderr
    for figures in read_result(done.stdout).sides[0].conditions[0].rounds:
        assert (figures.num_errors, figures.num_requests) == (0, 4)
        assert figures.failures[0].is_accepted
    assert "2 requests counted as served: HTTP 400: deliberate error" in done.stderr


def test_with_a_duration_requests_are_repeated_and_the_report_counts_them(tiny_server, run_bench_liveness):
    server = tiny_server("--first-ms", 20)
    words = ("--kind", "chat", "--duration", 1.2)
    done = run_bench_liveness("--url", server.url, *QUICK, *words, "--json", "-")
    assert done.returncode == 0, done.stderr
    (figures,) = read_result(done.stdout).sides[0].conditions[0].rounds
    assert figures.duration_s >= 1.2
    assert figures.num_repeated == figures.num_requests - 4 > 0
    assert "requests repeat an earlier one of the same round" in done.stderr
    assert server.seen["max_running"] == 2


def test_a_blocked_side_fails_against_the_other_side(tiny_server, run_bench_liveness):
    quick, blocked = tiny_server("--blocks-ms", 30), tiny_server("--blocks-ms", 1000)
    done = run_bench_liveness("--url", blocked.url, "--vs-url", quick.url, *QUICK, "--fail-over", "50%")
    assert done.returncode == 1
    assert "/health p99 ms is" in done.stderr
    assert "that of B" in done.stderr


def test_a_server_without_health_exits_with_3(tiny_server, run_bench_liveness):
    done = run_bench_liveness("--url", tiny_server("--has-no-health").url, *QUICK)
    assert done.returncode == 3
    assert "/health answers 404" in done.stderr


def test_the_options_match_the_fields_of_the_configuration():
    options = {option.name: option for option in bench_liveness.liveness.params}
    assert tuple(options["kinds"].type.choices) == get_args(Kind)
    shape = PayloadShape()
    for name in PayloadShape.__dataclass_fields__:
        assert options[name].default == getattr(shape, name), name
    for name in ("num_rounds", "kinds", "idle", "seed", "ready_timeout_s", "request_timeout_s"):
        assert options[name].default == LivenessConfig.__dataclass_fields__[name].default, name
