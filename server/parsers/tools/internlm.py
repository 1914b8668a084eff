"""`<|action_start|><|plugin|>{"name": …, "parameters": …}<|action_end|>`: InternLM."""

from server.parsers.json_calls import CallStyle
from server.parsers.marked_calls import MarkedObjects


class InternlmParser(MarkedObjects):
    """One call between markers."""

    markers = {"<|action_start|><|plugin|>": "<|action_end|>"}
    style = CallStyle(("parameters", "arguments"), may_omit_arguments=True)
