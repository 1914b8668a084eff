"""Parsers of a model's output, loaded by `registry.py`. `base.py` has their interfaces.

To add a format of tool calls that are JSON after a marker, add a `MarkedCalls` to `tools/json_formats.py`. If
the format writes each argument between markers, add a `Markup` to `tools/markup_formats.py`. For any other
format, add a file with a subclass of `TextParser` and its method `read` (see `tools/gemma4.py`).
"""
