"""`use_beam_search` over HTTP: a real engine with a tiny model finds what vLLM's rules say."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from server.config import ModelFiles, RendererConfig
from server.renderers.hf import HfRenderer
from server.server_config import ServerConfig
from server.types import EngineOutput, EnginePrompt, SamplingParams
from tests.llamas import save_tiny_llama
from tests.server.engine.sampling.byte_tokenizer import EOS
from tests.server.engine.small_engine import SmallEngine
from tests.server.http.conftest import MODEL, LiveServer, ScriptedEngine, assert_rejected, run_app
from tests.server.http.raw_request import send

PROMPT = "The quick brown fox jumps over the lazy dog and runs"
OTHER_PROMPT = "A prompt of other words, which is longer than the shortest prefix"
LETTERS = range(ord("a"), ord("z") + 1)


class SteppedEngine(ScriptedEngine):
    """A real engine core; whoever waits for an output steps it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__([])
        self.small = SmallEngine(model, num_slots=4, prefix_tokens=2048, eos_token_ids=(EOS,))

    async def run_sequence(
        self, request_id: str, prompt: EnginePrompt, params: SamplingParams
    ) -> AsyncGenerator[EngineOutput, None]:
        completion = self.small.add(request_id, prompt.token_ids, prompt.inputs, **msgspec.structs.asdict(params))
        await asyncio.sleep(0)
        while completion.finish_reason is None:
            self.small.step()
            await asyncio.sleep(0)
        yield EngineOutput(
            request_id,
            completion.token_ids,
            completion.finish_reason,
            completion.stop_token_id,
            completion.logprobs,
            num_cached_tokens=completion.num_cached_tokens,
        )


class Found(NamedTuple):
    """A text of the reference."""

    token_ids: list[int]
    logprob: float
    is_ended: bool
    logprobs: list[float]


def search(  # the same rules, as plainly as possible
    model: PreTrainedModel,
    prompt: list[int],
    *,
    n: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    ignore_eos: bool = False,
    include_stop_str_in_output: bool = False,
) -> list[Found]:
    beams, ended = [Found(prompt, 0.0, False, [])], []
    for _ in range(max_tokens):
        longer = []
        for beam in beams:
            with torch.inference_mode():
                logits = model(torch.tensor([beam.token_ids])).logits[0, -1]
            top = torch.log_softmax(logits, dim=-1).topk(2 * n)
            for logprob, token_id in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                is_end = token_id == EOS and not ignore_eos
                token_ids = beam.token_ids + ([] if is_end and not include_stop_str_in_output else [token_id])
                found = Found(token_ids, beam.logprob + logprob, is_end, [*beam.logprobs, logprob])
                (ended if is_end else longer).append(found)
        beams = sorted(longer, key=lambda beam: beam.logprob, reverse=True)[:n]

    def score(beam: Found) -> float:
        return beam.logprob / (len(beam.token_ids) - (beam.token_ids[-1] == EOS)) ** length_penalty

    best = sorted(ended + beams, key=score, reverse=True)[:n]
    return [beam._replace(token_ids=beam.token_ids[len(prompt) :]) for beam in best]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Several are slower for a tiny model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    """Prefers letters and the end of the sequence, each about as often."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    rows = torch.tensor([*LETTERS, EOS])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[rows] = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(0)) * 0.3
    return model.eval()


@pytest.fixture(scope="module")
def beam_renderer(folder: Path) -> Iterator[HfRenderer]:
    with HfRenderer(ModelFiles(folder, folder), RendererConfig()) as renderer:
        renderer.warm_up()
        renderer.max_model_len = 256
        yield renderer


@pytest.fixture
def stepped(model: PreTrainedModel) -> SteppedEngine:
    return SteppedEngine(deepcopy(model))


@pytest.fixture
def beams(stepped: SteppedEngine, beam_renderer: HfRenderer) -> Iterator[LiveServer]:
    with run_app(ServerConfig(served_model_names=(MODEL,)), beam_renderer, stepped) as server:
        yield server


def complete(server: LiveServer, **fields: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "use_beam_search": True, "max_tokens": 8, "return_token_ids": True} | fields
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"n": 1}, id="one beam"),
        pytest.param({"n": 3}, id="three beams"),
        pytest.param({"n": 8}, id="more beams than slots"),
        pytest.param({"n": 3, "length_penalty": 0.0}, id="short"),
        pytest.param({"n": 3, "length_penalty": 8.0}, id="long"),
        pytest.param({"n": 3, "include_stop_str_in_output": True}, id="end kept"),
        pytest.param({"n": 3, "ignore_eos": True}, id="end ignored"),
    ],
)
def test_choices_are_those_of_vllms_rules(
    beams: LiveServer, model: PreTrainedModel, beam_renderer: HfRenderer, fields: dict[str, Any]
) -> None:
    body = complete(beams, **fields, logprobs=1, temperature=0)
    expected = search(model, list(PROMPT.encode()), max_tokens=8, **fields)
    choices = body["choices"]
    assert [choice["token_ids"] for choice in choices] == [beam.token_ids for beam in expected]
    assert [choice["finish_reason"] for choice in choices] == [
        "stop" if beam.is_ended else "length" for beam in expected
    ]
    assert [choice["stop_reason"] for choice in choices] == [EOS if beam.is_ended else None for beam in expected]
    for choice, beam in zip(choices, expected, strict=True):
        shown = beam.token_ids[:-1] if beam.is_ended and fields.get("include_stop_str_in_output") else beam.token_ids
        assert choice["text"] == beam_renderer.detokenize(shown, skip_special_tokens=True)
        logprobs = choice["logprobs"]["token_logprobs"]
        assert logprobs == pytest.approx(beam.logprobs[: len(beam.token_ids)], abs=1e-4)
    num_tokens = sum(len(beam.token_ids) for beam in expected)
    assert body["usage"] == {
        "prompt_tokens": len(PROMPT),
        "completion_tokens": num_tokens,
        "total_tokens": len(PROMPT) + num_tokens,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def test_the_cases_above_differ(model: PreTrainedModel) -> None:
    prompt = list(PROMPT.encode())
    short, usual, long = (search(model, prompt, n=3, max_tokens=8, length_penalty=p) for p in (0.0, 1.0, 8.0))
    assert any(beam.is_ended for beam in usual)
    assert len({str(found) for found in (short, usual, long)}) > 1


def test_each_step_computes_at_most_a_block_of_tokens_per_beam(beams: LiveServer, stepped: SteppedEngine) -> None:
    complete(beams, n=3)
    first, *later = stepped.small.steps
    assert sum(first.values()) == len(PROMPT)
    assert max(num_tokens for step in later for num_tokens in step.values()) <= 16
    assert sum(map(len, later)) == 3 * 7
    stepped.small.assert_nothing_leaked()


def test_prompts_are_searched_apart(beams: LiveServer) -> None:
    texts = [choice["text"] for choice in complete(beams, prompt=[PROMPT, OTHER_PROMPT, PROMPT], n=2)["choices"]]
    assert texts[:2] == texts[4:]
    assert texts[:2] != texts[2:4]
    assert texts[2:4] == [choice["text"] for choice in complete(beams, prompt=OTHER_PROMPT, n=2)["choices"]]


def test_echo_repeats_the_prompt(beams: LiveServer) -> None:
    plain, echoed = (complete(beams, n=2, echo=echo)["choices"] for echo in (False, True))
    assert [choice["text"] for choice in echoed] == [PROMPT + choice["text"] for choice in plain]


def test_chats_are_searched_and_a_stream_has_each_choice_as_one_delta(beams: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "use_beam_search": True, "n": 2, "max_tokens": 8}
    whole = beams.post("/v1/chat/completions", body | {"logprobs": True, "top_logprobs": 2}).json()["choices"]
    assert len({choice["message"]["content"] for choice in whole}) == 2
    assert all(len(entry["top_logprobs"]) == 2 for choice in whole for entry in choice["logprobs"]["content"])
    chunks = [msgspec.json.decode(line) for line in beams.stream_lines("/v1/chat/completions", body)[:-1]]
    last = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert [(choice["index"], choice["delta"]["content"]) for choice in last] == [
        (choice["index"], choice["message"]["content"]) for choice in whole
    ]


def test_other_sampling_parameters_have_no_effect(beams: LiveServer) -> None:
    plain = complete(beams, n=2)
    others = {"temperature": 1.5, "seed": 3, "stop": "e", "structured_outputs": {"regex": "[0-9]+"}, "top_p": 0.1}
    assert complete(beams, n=2, **others)["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"stream": True}, "stream", "Streaming is not currently supported with beam search"),
        ({"echo": True, "logprobs": 1}, "echo", "not supported with beam search"),
        ({"logprobs": 1, "logprob_token_ids": [1]}, "logprob_token_ids", "not supported with beam search"),
        ({"n": 11}, "n", "--max-logprobs"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_a_400(
    server: LiveServer, engine: ScriptedEngine, fields: dict[str, Any], param: str, message: str
) -> None:
    assert_rejected(server.complete(use_beam_search=True, **fields), param, message)
    assert not engine.requests


def test_failed_step_fails_the_request(server: LiveServer, engine: ScriptedEngine, wait_until: Any) -> None:
    engine.fails_after = 0
    assert server.complete(use_beam_search=True, n=2, prompt=["a", "b"]).status_code == 500
    wait_until(lambda: server.parts.admission.num_queued_tokens == 0)


def test_disconnect_ends_the_step(server: LiveServer, engine: ScriptedEngine, wait_until: Any) -> None:
    engine.holds_after = 0
    body = {"prompt": ["a", "b"], "use_beam_search": True, "n": 2}
    with send(server, "/v1/completions", body):
        wait_until(lambda: len(engine.requests) == 2)
        assert not engine.aborted
    wait_until(lambda: len(engine.aborted) == 2)
    wait_until(lambda: server.parts.running.num_running == 0)
    assert len(engine.requests) == 2
