"""instructor: structured answers in its default mode, complete or streamed in parts."""

from typing import Any

import instructor
import openai
from chat_features import ask
from scenario import DESCRIBE, MODEL, City, base_url, report

CLIENT = instructor.from_openai(openai.OpenAI(base_url=f"{base_url()}/v1", api_key="none"))


def structured() -> dict[str, Any]:
    return CLIENT.chat.completions.create(model=MODEL, messages=ask(DESCRIBE), response_model=City).model_dump()


def structured_stream() -> dict[str, Any]:
    partial = CLIENT.chat.completions.create_partial(model=MODEL, messages=ask(DESCRIBE), response_model=City)
    return list(partial)[-1].model_dump()


report(structured=structured, structured_stream=structured_stream)
