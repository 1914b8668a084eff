"""Detects checkpoints that need their own renderer, from file names and JSON; standard library only."""

from pathlib import Path

from server.config import ModelFiles
from server.renderers.tokenizers.loading import read_json_object

GROK2_FILE = "tokenizer.tok.json"


def is_deepseek_v32(files: ModelFiles) -> bool:
    """Whether code encodes the model's conversations, as published with DeepSeek-V3.2.

    The experimental version before it has the same architecture, but a chat template, which is used instead.

    Raises:
        TokenizerLoadError: a file is not JSON.
    """
    config = read_json_object(files.path / "config.json")
    architectures = config.get("architectures") or []
    if config.get("model_type") != "deepseek_v32" and "DeepseekV32ForCausalLM" not in architectures:
        return False
    folder = files.tokenizer_path
    has_template = (folder / "chat_template.jinja").exists()
    return not has_template and not read_json_object(folder / "tokenizer_config.json").get("chat_template")


def find_grok2_file(path: Path) -> Path | None:
    """xAI's tokenizer file in this folder, or the path itself if it is such a file."""
    file = path if path.name.endswith(".tok.json") else path / GROK2_FILE
    return file if file.is_file() else None
