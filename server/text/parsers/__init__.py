"""Parsers of a model's output, loaded by `registry.py`. `base.py` has their interfaces.

To add a format of calls: if it is JSON behind a marker, add a `MarkedCalls` to `tools/json_formats.py`. If
arguments are between markers of their own, add a `Markup` to `tools/markup_formats.py`. For any other format,
add a `TextParser` in a file of its own, whose `read` goes through the text (`tools/gemma4.py`).
"""
