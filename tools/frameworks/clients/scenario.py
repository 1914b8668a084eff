"""The parts of every client's scenario, such as prompts, the model's answers, a tool, and the report.

Clients run in a separate Python environment. It has pydantic, because all clients need it.
"""

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

MODEL = "agent"
QUESTION, ANSWER = "What is the capital of France?", "Paris is the capital of France."
DESCRIBE, CITY = "Describe Paris.", {"city": "Paris", "population": 2100000}
CALL_FINAL_RESULT, CALL_CITY = "Describe Paris to final_result.", "Describe Paris to City."
"""Prompts for libraries that get a structured answer as a tool call. The library chooses the tool's name."""
WEATHER_QUESTION, WEATHER_CALL = (
    "What is the weather in Paris?",
    {"name": "get_weather", "arguments": {"city": "Paris"}},
)
WEATHER, WEATHER_ANSWER = "sunny, 21 degrees", "It is sunny in Paris."
READ_NOTE, READ_CALL = "Read the note.", {"name": "Bash", "arguments": {"command": "cat note.txt"}}
NOTE, NOTE_ANSWER = "Buy milk.", "The note is about milk."
"""The content of a file that coding agents read, and the answer to a question about it."""

MEMORY = {
    f"user: {QUESTION}": ANSWER,
    f"user: {DESCRIBE}": json.dumps(CITY),
    f"user: {CALL_FINAL_RESULT}": json.dumps([{"name": "final_result", "parameters": CITY}]),
    f"user: {CALL_CITY}": json.dumps([{"name": "City", "parameters": CITY}]),
    f"user: {WEATHER_QUESTION}": f"<tool_call>\n{json.dumps(WEATHER_CALL)}\n</tool_call>",
    f"user: {WEATHER_QUESTION}\ntool: {WEATHER}": WEATHER_ANSWER,
    f"user: {READ_NOTE}": f"<tool_call>\n{json.dumps(READ_CALL)}\n</tool_call>",
    f"user: {READ_NOTE}\ntool: {NOTE}": NOTE_ANSWER,
}
"""A line that the model reads -> what the model writes."""


class City(BaseModel):
    """The structured answer that every client asks for."""

    city: str
    population: int


def get_weather(city: str) -> str:
    """Returns the weather."""
    return WEATHER


def base_url() -> str:
    """The server's address, which is the program's argument."""
    return sys.argv[1]


def report_all(features: Any, **more: Callable[[], Any]) -> None:
    """Calls `report` with the features that all clients have, and with `more` features."""
    report(**{name: getattr(features, name) for name in ("text", "stream", "structured", "tools", "loop")}, **more)


def report(**features: Callable[[], Any]) -> None:
    """Uses each feature, and prints the results as JSON. The result of a failed feature is its traceback."""
    results: dict[str, Mapping[str, Any]] = {}
    for name, use in features.items():
        try:
            results[name] = {"value": use()}
        except Exception:  # noqa: BLE001
            results[name] = {"error": traceback.format_exc()}
    print(json.dumps(results))
