"""A request reaches the engine once for all its sequences; long parts in pieces, between other messages."""

import asyncio

import msgspec
import pytest

from server.engine.features.prompt_features import to_tensor
from server.engine.process_link.client import EngineClient
from server.engine.process_link.messages import Abort, Prompt
from server.errors import EngineDeadError, EngineStartError
from server.types import EnginePrompt, GuidedDecoding, PromptInputs, ReasoningRules, SamplingParams, TensorData
from tests.server.engine.process_link.fake_engine import FakeEngine, connected

PARAMS = SamplingParams(max_tokens=1)


def tensor(num_bytes: int, start: int = 0) -> TensorData:
    data = bytes((start + i // 1000) % 251 for i in range(num_bytes))
    return TensorData("uint8", (num_bytes,), memoryview(data))


def kinds_of(engine: FakeEngine) -> list[str]:
    return [type(message).__name__ for message in engine.messages]


async def tokens_of(
    client: EngineClient, request_id: str, inputs: PromptInputs | None = None, num_choices: int = 1
) -> list[int]:
    prompts = [EnginePrompt([0, 0], PARAMS, inputs)]
    return [t async for o in client.generate(request_id, prompts, num_choices) for t in o.token_ids]


async def test_tensors_arrive_unchanged() -> None:
    async with connected() as (client, engine):
        inputs = PromptInputs(
            embeds=tensor(700_001), mm={"pixels": tensor(5, 3), "none": tensor(0), "grid": tensor(24)}
        )
        assert await tokens_of(client, "a", inputs) == [7]
        assert await tokens_of(client, "b") == [7]
    found = engine.requests["a"].prompts[0].inputs
    assert engine.requests["b"].prompts[0].inputs is None
    assert found.embeds == inputs.embeds
    assert found.mm == inputs.mm
    assert not engine.uploads._pieces
    assert "Abort" not in kinds_of(engine)


async def test_tensors_are_aligned() -> None:
    async with connected() as (client, engine):
        params = SamplingParams(max_tokens=1, guided=GuidedDecoding("regex", "x"))
        inputs = PromptInputs(embeds=tensor(700_001), mm={"pixels": tensor(5), "grid": tensor(24)})
        assert len([each async for each in client.generate("a", [EnginePrompt([0], params, inputs)])]) == 1
    found = engine.requests["a"].prompts[0].inputs
    tensors = [found.embeds, *found.mm.values()]
    assert [to_tensor(each).data_ptr() % 8 for each in tensors] == [0, 0, 0]


async def test_long_grammars_and_prompts_arrive_unchanged() -> None:
    async with connected() as (client, engine):
        guided = GuidedDecoding("regex", "日本😀" * 200_000)
        shared = SamplingParams(max_tokens=1, guided=guided, allowed_token_ids=(1, 2), seed=-3)
        rules = ReasoningRules(budget=5)
        params = [shared, msgspec.structs.replace(shared, max_tokens=9, reasoning=rules)]
        ids = [list(range(100_000)), [], [2**40]]
        inputs = PromptInputs(mm={"grid": tensor(24)})
        prompts = [
            EnginePrompt(ids[0], params[0]),
            EnginePrompt(ids[1], params[1], inputs),
            EnginePrompt(ids[2], shared),
        ]
        assert [o.token_ids async for o in client.generate("a", prompts, 2)] == [[7]] * 6
    found = engine.requests["a"]
    assert found.params == shared
    assert [p.token_ids for p in found.prompts] == ids
    assert [(p.max_tokens, p.reasoning) for p in found.prompts] == [(1, None), (9, rules), (1, None)]
    assert [p.inputs is None for p in found.prompts] == [True, False, True]
    assert not engine.uploads._pieces


@pytest.mark.parametrize("part", ["grammar", "prompt", "inputs", "lists"])
async def test_the_number_of_choices_does_not_change_what_is_sent(part: str) -> None:
    async with connected() as (client, engine):
        lists = tuple(range(50_000)) if part == "lists" else ()
        guided = GuidedDecoding("regex", "x" * 200_000) if part == "grammar" else None
        params = SamplingParams(max_tokens=1, guided=guided, allowed_token_ids=lists)
        inputs = PromptInputs(embeds=tensor(200_000)) if part == "inputs" else None
        prompt = EnginePrompt([0] * (25_000 if part == "prompt" else 2), params, inputs)
        sent = []
        for num_choices in (1, 4096):
            before = engine.num_bytes
            outputs = [output async for output in client.generate(f"n-{num_choices}", [prompt], num_choices)]
            assert len(outputs) == num_choices
            sent.append(engine.num_bytes - before)
    assert sent[0] > 100_000
    assert sent[1] < sent[0] + 100


async def test_prompts_of_a_request_share_their_parameters() -> None:
    async with connected() as (client, engine):
        params = SamplingParams(max_tokens=1, guided=GuidedDecoding("regex", "x" * 200_000))
        prompts = [EnginePrompt([i], msgspec.structs.replace(params, max_tokens=i + 1)) for i in range(64)]
        assert len([output async for output in client.generate("a", prompts)]) == 64
    assert engine.requests["a"].prompts == [Prompt([i], i + 1) for i in range(64)]
    assert engine.num_bytes < 210_000


async def test_one_of_several_sequences_is_aborted() -> None:
    async with connected() as (client, engine):
        outputs = client.generate("a", [EnginePrompt([0], PARAMS)], 3)
        names = [(await anext(outputs)).request_id]
        client.abort(["a-2"])
        names += [output.request_id async for output in outputs]
    assert names == ["a-0", "a-1"]
    assert [m.request_ids for m in engine.messages if isinstance(m, Abort)] == [["a-2"]]
    assert not client._streams


async def test_thousands_of_outputs_let_other_tasks_run() -> None:
    async with connected() as (client, engine):
        outputs = client.generate("a", [EnginePrompt([0], PARAMS)], 4096)
        await anext(outputs)  # now all others have arrived

        async def take_rest() -> int:
            return len([output async for output in outputs])

        rest = asyncio.create_task(take_rest())
        num_turns = 0
        while not rest.done():
            await asyncio.sleep(0)
            num_turns += 1
        assert await rest == 4095
    assert num_turns > 100


async def test_closing_a_stream_aborts_all_its_sequences_at_once() -> None:
    async with connected() as (client, engine):
        outputs = client.generate("a", [EnginePrompt([0], PARAMS)], 3)
        await anext(outputs)
        await outputs.aclose()
    assert [m.request_ids for m in engine.messages if isinstance(m, Abort)] == [["a-1", "a-2"]]
    assert not client._streams


async def test_other_requests_and_the_event_loop_continue_during_an_upload() -> None:
    async with connected() as (client, engine):
        inputs = PromptInputs(embeds=TensorData("uint8", (48 << 20,), memoryview(bytes(48 << 20))))
        large = asyncio.create_task(tokens_of(client, "large", inputs))
        turns, num_small = 0, 0
        while not large.done():
            await asyncio.sleep(0)
            turns += 1
            if turns % 20 == 0:
                await tokens_of(client, f"small-{turns}")
                num_small += 1
    assert turns > 100
    assert num_small > 4
    kinds = kinds_of(engine)
    first, last = kinds.index("Piece"), len(kinds) - kinds[::-1].index("Piece")
    assert kinds[first:last].count("Generate") > 2, "other requests are sent between the pieces"


async def test_a_cancelled_requests_upload_is_dropped() -> None:
    async with connected() as (client, engine):
        request = asyncio.create_task(tokens_of(client, "gone", PromptInputs(embeds=tensor(3_000_000)), num_choices=2))
        while not engine.uploads._pieces:
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert not client._streams
        assert await tokens_of(client, "next") == [7]
    assert "gone" not in engine.requests
    assert not engine.uploads._pieces
    assert [m.request_ids for m in engine.messages if isinstance(m, Abort)] == [["gone-0", "gone-1"]]


async def test_an_engine_exit_during_an_upload_raises_engine_dead_error() -> None:
    async with connected() as (client, engine):
        request = asyncio.create_task(tokens_of(client, "a", PromptInputs(embeds=tensor(3_000_000))))
        while not client._streams:
            await asyncio.sleep(0)
        engine.end()
        with pytest.raises(EngineDeadError):
            await asyncio.wait_for(request, 60)
        assert not client._streams
        with pytest.raises(EngineStartError):
            _ = client.info
