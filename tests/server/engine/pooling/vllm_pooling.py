"""A script for vLLM's Python: embeds texts, or scores the first text against the others."""

import json
import os
import sys

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1")


def main(asked: str, answered: str, folder: str, kind: str) -> None:
    from vllm import LLM

    with open(asked) as file:  # noqa: PTH123
        texts = json.load(file)
    llm = LLM(model=folder, runner="pooling", enforce_eager=True, dtype="float32")
    if kind == "embed":
        found = [output.outputs.embedding for output in llm.embed(texts)]
    else:
        found = [[output.outputs.score] for output in llm.score(texts[0], texts[1:])]
    with open(answered, "w") as file:  # noqa: PTH123
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
