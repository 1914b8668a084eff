"""The reasoning of gpt-oss, which is a channel of its messages; openai_harmony reads all of them at once."""

from typing import Final

from server.parsers.base import OutputParser, PromptEnd
from server.parsers.reasoning.tags import ReasoningFormat
from server.parsers.tools.openai import HarmonyParser


class _Harmony(ReasoningFormat):
    def create_parser(self, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> OutputParser:
        return HarmonyParser([])


GPT_OSS: Final = _Harmony(
    starts=("<|channel|>analysis<|message|>",),
    ends=("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"),
    pauses=("<|end|>",),
    is_open_at_start=False,
    has_limit=False,  # as in vLLM, because calls may be a part of it
    parses_calls=True,
)
