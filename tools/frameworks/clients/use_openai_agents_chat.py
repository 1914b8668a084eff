"""openai-agents with chat completions, which the library uses for servers other than OpenAI's."""

import openai
from agents import OpenAIChatCompletionsModel
from agents_features import Features
from scenario import MODEL, base_url, report_all

client = openai.AsyncOpenAI(base_url=f"{base_url()}/v1", api_key="none")

report_all(Features(OpenAIChatCompletionsModel(model=MODEL, openai_client=client)))
