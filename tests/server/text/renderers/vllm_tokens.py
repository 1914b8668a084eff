"""A script for vLLM's Python: what vLLM makes of tokens, for `test_tokens_against_vllm.py`.

`python vllm_tokens.py CASES ANSWERS`: each case has the folder of a `tokenizer`, the token ids of `prompt`
and `output`, and `top`, the candidates of each token of the output. An answer has the `text` of the output,
and the texts of all candidates.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import get_tokenizer
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

cases, answers = sys.argv[1:]
tokenizers: dict[str, Any] = {}


def read(case: dict[str, Any]) -> dict[str, Any]:
    folder = case["tokenizer"]
    tokenizer = tokenizers.setdefault(folder, get_tokenizer(folder))
    num_top = len(case["top"][0]) - 1
    params = SamplingParams(logprobs=num_top, prompt_logprobs=0, skip_special_tokens=False)
    request = SimpleNamespace(
        request_id="r", sampling_params=params, prompt_token_ids=case["prompt"], prompt_embeds=None
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    processor = LogprobsProcessor.from_new_request(tokenizer, request)
    later = case["prompt"][1:]
    if later:
        ids = torch.tensor(later)[:, None]
        zeros = torch.zeros(len(later))
        processor._update_prompt_logprobs(LogprobsTensors(ids, zeros[:, None], zeros.int()))
    for token_id, candidates in zip(case["output"], case["top"], strict=True):
        assert candidates[0] == token_id
        lists = np.array([candidates]), np.zeros((1, len(candidates))), np.zeros(1, dtype=int)
        processor._update_sample_logprobs(LogprobsLists(*lists))
        detokenizer.update([token_id], stop_terminated=False)
    return {
        "text": detokenizer.get_next_output_text(finished=True, delta=False),
        "prompt": [[each.decoded_token for each in entry.values()] for entry in processor.prompt_logprobs[1:]],
        "output": [{str(i): each.decoded_token for i, each in entry.items()} for entry in processor.logprobs],
    }


Path(answers).write_text(json.dumps([read(case) for case in json.loads(Path(cases).read_text())]))
