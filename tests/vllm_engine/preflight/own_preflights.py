"""A script for vLLM's Python: runs the preflight of `serve --engine vllm` for many starts.

`python own_preflights.py QUESTION ANSWER`: the question is the same as for `vllm_starts.py`. The answer has
the errors of each start, as lists of check and message.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from envs.foreign import overlaid
from startup.session.preflight.all_checks import PreflightOptions
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.installed import require_vllm
from startup.vllm_words.preflight.all_checks import run_preflight
from tests.vllm_engine.preflight.vllm_parser import record


def main(question: str, answer: str) -> None:
    os.environ["VLLM_CACHE_ROOT"] = f"{answer}.cache"
    if not (pid := os.fork()):
        record()
        os._exit(0)
    os.waitpid(pid, 0)
    vllm = require_vllm()
    answers = []
    for start in json.loads(Path(question).read_text()):
        with overlaid(start["variables"]):
            report = run_preflight(vllm, CommandLine.of(start["words"]), PreflightOptions(is_listening=True))
        answers.append([[finding.check, finding.message] for finding in report.errors])
    Path(answer).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
