"""The reasoning of gpt-oss, which is a channel of its messages; openai_harmony reads all of them at once."""

from typing import ClassVar, Final

from server.parsers.base import OutputParser, PromptEnd
from server.parsers.reasoning.formats import TemplateKwargs
from server.parsers.tools.openai import HarmonyParser


class GptOssFormat:
    """A `ReasoningFormat`; its reasoning cannot be limited, as in vLLM, because calls may be a part of it."""

    starts: ClassVar[tuple[str, ...]] = ("<|channel|>analysis<|message|>",)
    ends: ClassVar[tuple[str, ...]] = ("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>")
    pauses: ClassVar[tuple[str, ...]] = ("<|end|>",)
    answer_starts: ClassVar[tuple[str, ...]] = ()
    forced_end: ClassVar[str | None] = None
    is_open_at_start: ClassVar[bool] = False
    parses_calls: ClassVar[bool] = True

    def is_used(self, template_kwargs: TemplateKwargs) -> bool:
        return True

    def create_parser(self, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> OutputParser:
        return HarmonyParser([])


GPT_OSS: Final = GptOssFormat()
