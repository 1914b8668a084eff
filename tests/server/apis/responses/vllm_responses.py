"""A script for vLLM's Python: makes vLLM's events of outputs, messages of inputs and functions of tools."""

import json
import sys
from pathlib import Path
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.streaming_events import SimpleStreamingEventProcessor, _StateType, split_delta
from vllm.entrypoints.openai.responses.utils import (
    construct_input_messages,
    construct_tool_dicts,
    should_continue_final_message,
)


def to_message(delta: dict[str, Any]) -> DeltaMessage:
    calls = [
        DeltaToolCall(
            index=call["index"],
            id=call["id"],
            function=DeltaFunctionCall(name=call["name"], arguments=call["arguments"]),
        )
        for call in delta.get("calls", ())
    ]
    return DeltaMessage(reasoning=delta.get("reasoning"), content=delta.get("content"), tool_calls=calls)


def events_of(deltas: list[dict[str, Any]], tools: Any) -> list[Any]:
    """Makes events in the same way as `OpenAIServingResponses._process_simple_streaming_events`."""
    processor = SimpleStreamingEventProcessor(tools=tools)
    events = []
    for delta in map(to_message, deltas):
        for part in split_delta(delta):
            state, call = processor.resolve_target_state(part)
            if state == _StateType.NONE:
                continue
            if processor.needs_transition(state, call):
                events += [*processor.close_current(), *processor.open(state, call)]
            events += processor.emit_delta(part, None)
    events += processor.close_current()
    return [json.loads(event.model_dump_json(by_alias=True)) for event in events]


question = json.loads(Path(sys.argv[1]).read_text())
tools = ResponsesRequest(input="a", tools=question["tools"]).tools
inputs = [ResponsesRequest.model_validate({"input": items}).input for items in question["inputs"]]
answer = {
    "events": [events_of(deltas, tools) for deltas in question["outputs"]],
    "messages": [construct_input_messages(request_instructions="Be brief.", request_input=items) for items in inputs],
    "continues": [should_continue_final_message(items) for items in inputs],
    "tools": construct_tool_dicts(tools, "auto"),
    "fields": sorted(ResponsesResponse.model_fields),
}
Path(sys.argv[2]).write_text(json.dumps(answer, default=lambda iterator: list(iterator)))
