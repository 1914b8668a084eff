"""`{"name": …, "parameters": …}; …`: Llama 3 and 4 with JSON, with or without `<|python_tag|>`."""

from server.parsers.json_calls import CallStyle
from server.parsers.marked_calls import MarkedObjects


class LlamaJsonParser(MarkedObjects):
    """Every JSON object with a name and parameters is a call, wherever it is in the text."""

    needs_special_tokens = False
    markers = {"<|python_tag|>": ""}
    bare_starts = "{"
    separators = ";"
    style = CallStyle(("arguments", "parameters"))
