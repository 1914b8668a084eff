"""Reads the properties of a model from which the formats of its output are detected."""

from server.parsers.detection import ModelFacts
from server.renderers.base import BaseRenderer
from server.renderers.tokenizers.files import read_json_object


def read_model_facts(renderer: BaseRenderer) -> ModelFacts:
    """The properties of the renderer's model."""
    return ModelFacts(
        template=renderer.tool_template,
        model_type=read_model_type(renderer),
        tokens=set(renderer.tokenizer.added_tokens.values()),
    )


def read_model_type(renderer: BaseRenderer) -> str | None:
    """The kind of model, such as `llama`, as config.json names it."""
    return read_json_object(renderer.files.path / "config.json").get("model_type")
