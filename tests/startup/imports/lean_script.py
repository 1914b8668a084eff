"""Imports the engine as in a start and builds each model. Prints greedy tokens and loaded modules."""

import json
import sys
from pathlib import Path

from startup.imports.heavy import import_engine

HEAVY = (
    "accelerate",
    "sympy",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.modeling_gguf_pytorch_utils",
)


def main() -> None:
    left_out = import_engine()
    from server.engine.build import build_core
    from server.engine.phases import Phases
    from server.terms.config import EngineConfig, ModelFiles
    from server.terms.types import EnginePrompt, SamplingParams

    for model in map(Path, sys.argv[1:]):
        core, _ = build_core(ModelFiles(model, model), EngineConfig(max_num_seqs=2), Phases())
        params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
        core.add(["a"], EnginePrompt(list(range(5, 45)), params))
        token_ids: list[int] = []
        while core.has_work:
            for output in core.step():
                token_ids += output.token_ids
        print(json.dumps(token_ids))
    left_out.restore()
    print(json.dumps([name for name in HEAVY if name in sys.modules]))
    import torch._dynamo

    print(json.dumps(torch._dynamo.__file__ is not None))
