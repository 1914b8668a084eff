"""Parsers of a model's output, loaded by `registry.py`; `base.py` has their interfaces.

A new format of calls: JSON behind a marker is a `MarkedCalls` in `tools/json_formats.py`, arguments between
markers of their own are a `Markup` in `tools/markup_formats.py`, and any other format is a `TextParser` in a
file of its own, whose `read` goes through the text (`tools/gemma4.py`).
"""
