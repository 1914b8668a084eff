"""Prompts, the reading of streams, and the load generator with a real server."""

import asyncio

import msgspec
import pytest
from tokenizers import Tokenizer

from vllm_cli.bench import request as request_module
from vllm_cli.bench.request import ChunkReader, CompletionFormat, build_prompt
from vllm_cli.bench.serve import LoadSamples, generate_load


def load_server(url: str, *, num_requests: int, concurrency: int, max_tokens: int = 5) -> LoadSamples:
    form = CompletionFormat(
        base_url=url,
        path="/v1/completions",
        model="tiny",
        headers={"Content-Type": "application/json"},
        optional={"stream_options": {"include_usage": True}},
    )
    bodies = [form.encode(build_prompt(12, seed=str(i)), max_tokens=max_tokens) for i in range(num_requests)]
    return asyncio.run(generate_load(form, bodies, concurrency=concurrency))


def test_every_request_is_sent_once_within_the_concurrency(fake_server):
    server = fake_server("--first-ms", 200, "--tokens-per-chunk", 3)
    load = load_server(server.url, num_requests=10, concurrency=3)
    seen = server.seen
    assert len(load.samples) == len(seen["bodies"]) == 10
    assert len({body["prompt"] for body in seen["bodies"]}) == 10
    assert seen["max_running"] == 3
    assert all(sample.error is None for sample in load.samples)
    assert {(len(each.text_times_ns), each.num_output_tokens) for each in load.samples} == {(5, 15)}, "usage counts"


@pytest.mark.parametrize(
    ("flags", "text"), [(["--aborts-streams"], ""), (["--first-ms", 5000], "Timeout")], ids=["aborted", "late"]
)
def test_a_stream_without_its_end_or_beyond_its_time_out_is_an_error(flags, text, fake_server, monkeypatch):
    monkeypatch.setattr(request_module, "REQUEST_TIMEOUT_S", 0.3 if text else 60.0)
    (sample,) = load_server(fake_server(*flags).url, num_requests=1, concurrency=1).samples
    assert sample.error is not None
    assert text in sample.error


def read(*pieces: bytes) -> ChunkReader:
    reader = ChunkReader()
    for now_ns, piece in enumerate(pieces, start=1):
        reader.feed(piece, now_ns)
    return reader


def test_the_arrival_of_every_chunk_with_text_is_recorded():
    reader = read(
        b'data: {"choices":[{"text":" one"}]}\n\n',
        b'data: {"choices":[{"text":" two"}]}\n\ndata: {"choices":[{"text":" three"}]}\n\n',
    )
    assert reader.text_times_ns == [1, 2, 2]


def test_an_event_may_be_split_anywhere():
    whole = b'data: {"choices": [{"delta": {"content": "x"}}]}\r\n\r\ndata: [DONE]\r\n\r\n'
    for cut in range(1, len(whole)):
        reader = read(whole[:cut], whole[cut:])
        assert len(reader.text_times_ns) == 1
        assert reader.is_finished


@pytest.mark.parametrize(
    ("event", "num_texts", "is_finished"),
    [
        ('{"choices":[{"text":"a"}]}', 1, False),
        ('{"choices":[{"text":"a","finish_reason":"length"}]}', 1, True),
        ('{"choices":[{"delta":{"reasoning_content":"hm"}}]}', 1, False),
        ('{"choices":[{"delta":{"role":"assistant","content":""}}]}', 0, False),
        ('{"choices":[{"delta":{},"finish_reason":"stop"}]}', 0, True),
        ("[DONE]", 0, True),
    ],
)
def test_text_is_counted_and_a_finish_reason_or_done_is_the_end(event, num_texts, is_finished):
    reader = read(b": keep-alive\n\n", f"data: {event}\n\n".encode())
    assert (len(reader.text_times_ns), reader.is_finished) == (num_texts, is_finished)


def test_usage_and_errors_are_found():
    reader = read(b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n')
    assert reader.usage is not None
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens) == (3, 5)
    assert "no memory" in str(read(b'data: {"error":{"message":"no memory","code":500}}\n\n').error)
    with pytest.raises(msgspec.DecodeError):
        read(b"data: nonsense\n\n")


def test_the_same_seed_gives_the_same_prompt():
    """The text is written out here, because it must be the same in every process."""
    assert build_prompt(20, seed="a") == "285243: Explain to a child the meaning of money. The money brings the"


def test_prompts_differ_from_their_first_word_on():
    beginnings = [build_prompt(64, seed=str(index))[:40] for index in range(500)]
    assert len(set(beginnings)) == 500


@pytest.mark.parametrize("num_tokens", [8, 16, 64, 400], ids=str)
def test_prompts_have_about_the_requested_length(num_tokens, model_path):
    tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
    lengths = [len(tokenizer.encode(build_prompt(num_tokens, seed=str(seed))).ids) for seed in range(20)]
    assert num_tokens * 0.85 <= sum(lengths) / 20 <= num_tokens * 1.15
