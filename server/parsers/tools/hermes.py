"""`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen2.5, Qwen3, SmolLM and others."""

from server.parsers.tagged_calls import TaggedCalls


class HermesParser(TaggedCalls):
    """Reads the format with which most models with ChatML templates are trained."""

    start = "<tool_call>"
    end = "</tool_call>"


class LongcatParser(TaggedCalls):
    """The same with longer markers."""

    start = "<longcat_tool_call>"
    end = "</longcat_tool_call>"
