"""Reads conversations from files: requests, texts of the model, expected answers, and reasons.

tests/README.md describes the files. This module also compares values with the expected ones.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = Path(__file__).parent
ABSENT: Final = "<absent>"
_HELLO: Final = [{"role": "user", "content": "Hello"}]
DEFAULTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "completion": ("/v1/completions", {"prompt": "The capital of France is"}),
    "chat": ("/v1/chat/completions", {"messages": _HELLO}),
    "response": ("/v1/responses", {"input": "Hello"}),
    "message": ("/v1/messages", {"model": "smol", "max_tokens": 100, "messages": _HELLO}),
}
"""Each API that generates text -> its path, and default fields of its requests."""

_OTHER_KEYS: Final = frozenset(
    "why says engine sends streams status headers answer events asked keep until vllm".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Turn:
    """A line of a file: a request and the expected answer."""

    place: str
    """The file's name and the line's number."""
    request: str
    """The name of an API such as `chat`, or a method and a path."""
    body: Any
    line: dict[str, Any]

    @property
    def method(self) -> str:
        return "POST" if self.request in DEFAULTS else self.request.partition(" ")[0]

    @property
    def path(self) -> str:
        return DEFAULTS[self.request][0] if self.request in DEFAULTS else self.request.partition(" ")[2]

    @property
    def api(self) -> str | None:
        """The name of the API, if the request is to one of `DEFAULTS`. Its answers can be streamed."""
        if self.method != "POST" or not isinstance(self.body, dict):
            return None
        return next((name for name, (path, _) in DEFAULTS.items() if path == self.path.partition("?")[0]), None)

    def filled(self, kept: dict[str, Any]) -> "Turn":
        """This turn with names replaced by the values that earlier turns have kept."""
        return Turn(self.place, fill(self.request, kept), fill(self.body, kept), fill(self.line, kept))


@dataclass(frozen=True)
class Conversation:
    """The turns that one test replays, one after the other."""

    why: str
    place: str
    server: dict[str, Any]
    """Settings of the conversation's server."""
    turns: list[Turn] = field(default_factory=list)


def conversations() -> list[Conversation]:
    """The conversations of all files."""
    return [one for path in sorted(FOLDER.glob("*.jsonl")) for one in read_file(path)]


def read_file(path: Path) -> Iterator[Conversation]:
    server: dict[str, Any] = {}
    found: Conversation | None = None
    for place, line in read_lines(path):
        if "server" in line:
            server = line["server"]
        else:
            turn = _read_turn(place, line)
            if "why" in line:
                if found:
                    yield found
                found = Conversation(line["why"], turn.place, server)
            assert found is not None, f"{turn.place}: the first line of a conversation says why"
            found.turns.append(turn)
    if found:
        yield found


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the lines with their places. Names are replaced by the values that `let` lines define."""
    names: dict[str, Any] = {}
    for number, text in enumerate(path.read_text().splitlines(), 1):
        line = fill(json.loads(text), names)
        if "let" in line:
            names |= line["let"]
        else:
            yield f"{path.name}:{number}", line


def _read_turn(place: str, line: dict[str, Any]) -> Turn:
    requests = line.keys() - _OTHER_KEYS
    assert len(requests) == 1, f"{place}: one request, and nothing else that is not known: {sorted(requests)}"
    (request,) = requests
    assert request in DEFAULTS or request[0].isupper(), f"{place}: not a request: {request}"
    body = line[request]
    return Turn(place, request, DEFAULTS[request][1] | body if request in DEFAULTS else body, line)


def fill(value: Any, names: dict[str, Any]) -> Any:
    """Replaces names in a value. `$NAME` becomes the named value, or within a text the value as text."""
    if isinstance(value, dict):
        return {fill(key, names): fill(member, names) for key, member in value.items()}
    if isinstance(value, list):
        return [fill(member, names) for member in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    if value[1:] in names:
        return names[value[1:]]
    return re.sub(r"\$(\w+)", lambda found: str(names.get(found[1], found[0])), value)


def value_at(value: Any, path: str) -> Any:
    """The member at a path such as `choices.0.text`. `*` in a path means all members, `#` their number."""
    names = path.split(".") if path else []
    for position, name in enumerate(names):
        if name == "*":
            rest = ".".join(names[position + 1 :])
            members = value.values() if isinstance(value, dict) else value
            return [one for member in members if (one := value_at(member, rest)) is not ABSENT]
        if name == "#":
            return len(value)
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (IndexError, KeyError, TypeError, ValueError):
            return ABSENT
    return value


def matches(found: Any, expected: Any) -> bool:
    """Whether the value is as expected. `<any>`, `<number>` and `...` in a text match many values."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and (
            found.keys() == expected.keys() and all(matches(found[name], one) for name, one in expected.items())
        )
    if isinstance(expected, list):
        return isinstance(found, list) and (len(found) == len(expected) and all(map(matches, found, expected)))
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, abs_tol=1e-6)
    if expected in ("<any>", "<number>"):
        return found is not ABSENT if expected == "<any>" else type(found) in (int, float)
    if isinstance(expected, str) and "..." in expected:
        pattern = ".*".join(map(re.escape, expected.split("...")))
        return isinstance(found, str) and re.fullmatch(pattern, found, re.DOTALL) is not None
    return type(found) is type(expected) and bool(found == expected)


def differences(what: str, found: Any, expected: dict[str, Any]) -> list[str]:
    """One text for each place where the found value differs from the expected value."""
    values = ((path, value_at(found, path), value) for path, value in expected.items())
    return [text for path, one, value in values for text in _differences(f"{what}.{path}", one, value)]


def _differences(place: str, found: Any, expected: Any) -> list[str]:
    if matches(found, expected):
        return []
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [*expected, *(found.keys() - expected.keys())]
        pairs = [(name, found.get(name, ABSENT), expected.get(name, ABSENT)) for name in names]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = list(zip(range(len(found)), found, expected, strict=True))
    else:
        return [f"  {place}\n    expected: {expected!r}\n    found:    {found!r}"]
    return [text for name, *pair in pairs for text in _differences(f"{place}.{name}", *pair)]


class Stream(NamedTuple):
    """The events of a streamed answer. `names` are the values of the `event:` lines."""

    data: list[dict[str, Any]]
    names: list[str]
    is_done: bool
    """Whether the stream ends with `[DONE]`."""


def read_stream(text: str) -> Stream:
    """Reads a stream as strict clients do: a blank line ends an event, which has one line of data."""
    *events, rest = text.split("\n\n")
    data, names = [], []
    for event in events:
        fields = [line.partition(": ") for line in event.split("\n") if not line.startswith(": ")]
        assert [name for name, _, _ in fields] in (["data"], ["event", "data"]), f"an event is {event!r}"
        names += [value for _, _, value in fields[:-1]]
        data.append(fields[-1][2])
    assert not rest, f"the stream ends within {rest!r}"
    is_done = data[-1:] == ["[DONE]"]
    return Stream([json.loads(each) for each in data[: len(data) - is_done]], names, is_done)


def joined(api: str, stream: Stream) -> Any:
    """The content of a stream, in the form that `said` returns for a whole answer."""
    assert stream.is_done == (api in ("completion", "chat")), "[DONE] ends the streams of OpenAI's older APIs only"
    if api in ("completion", "chat"):
        return _said_by_choices(stream.data)
    assert stream.names == [event["type"] for event in stream.data]
    return _joined_response(stream.data) if api == "response" else _joined_message(stream.data)


def said(api: str, answer: dict[str, Any]) -> Any:
    return _said_by_choices([answer]) if api in ("completion", "chat") else without_ids(answer)


def _said_by_choices(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The content of each choice, joined from all chunks. A whole answer counts as one chunk."""
    found: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        one = found.setdefault(choice["index"], {"text": "", "reasoning": "", "calls": {}, "ids": [], "logprobs": {}})
        part = choice.get("delta") or choice.get("message") or choice
        one["text"] += part.get("text") or part.get("content") or ""
        one["reasoning"] += part.get("reasoning") or ""
        one["ids"] += choice.get("token_ids") or ()
        for name, values in (choice["logprobs"] or {}).items():
            one["logprobs"].setdefault(name, []).extend(values or ())
        indices = [call.get("index", index) for index, call in enumerate(part.get("tool_calls") or ())]
        assert len(indices) == len(set(indices)), "a chunk has one piece of each call, as clients expect"
        for index, call in zip(indices, part.get("tool_calls") or (), strict=True):
            function = one["calls"].setdefault(index, {"name": "", "arguments": ""})
            for name in function:
                function[name] += call["function"].get(name) or ""
        if choice["finish_reason"]:
            one["end"] = (choice["finish_reason"], choice.get("stop_reason"))
    return found


def _joined_response(events: list[dict[str, Any]]) -> Any:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas: dict[str, str] = {}
    for event in events:
        kind = event["type"].rpartition(".")
        if kind[2] == "delta":
            deltas[event["item_id"]] = deltas.get(event["item_id"], "") + event["delta"]
    response = events[-1]["response"]
    for item in response["output"]:
        texts = [item.get("arguments"), item.get("input"), *(part["text"] for part in item.get("content") or ())]
        assert deltas.get(item["id"], "") == "".join(text for text in texts if text)
    return without_ids(response)


def _joined_message(events: list[dict[str, Any]]) -> Any:
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            for name, text in event["delta"].items():
                if name != "type":
                    blocks[event["index"]][name] = blocks[event["index"]].get(name, "") + text
    for block in blocks:
        if "partial_json" in block:
            block["input"] = _object_or_empty(block.pop("partial_json"))
    end = events[-2]
    return without_ids(events[0]["message"] | end["delta"] | {"content": blocks, "usage": end["usage"]})


def _object_or_empty(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


_OF_EACH_REQUEST: Final = ("id", "call_id", "signature", "created", "created_at", "completed_at", "usage")


def without_ids(value: Any) -> Any:
    """Removes nulls and members that differ from request to request."""
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in _OF_EACH_REQUEST and v is not None}
    return [without_ids(member) for member in value] if isinstance(value, list) else value
