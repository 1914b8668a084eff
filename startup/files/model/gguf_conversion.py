"""Converts a GGUF file to a folder of bf16 safetensors. Runs as a script in a process of its own.

The script's arguments are the file, the folder to write, and a folder with the packages that read GGUF.
"""

import functools
import sys
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Writes the GGUF model of the file `source`, and its tokenizer, into the folder `target`."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers reads the file, with its 49,152 tokens, three times, and builds a table of names for each
    # module: 22 s instead of 10.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


if __name__ == "__main__":
    sys.path.append(sys.argv[3])
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
