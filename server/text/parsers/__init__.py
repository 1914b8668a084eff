"""Finds reasoning and tool calls in a model's output: `output_parser.py`, by the data of `formats.py`."""
