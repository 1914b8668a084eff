"""Times a request for a stopped model to its first token (`vllm-cli serve --idle-stop`).

    .venv/bin/python -m tools.wake_time .peers/model --engine embedded
    .venv/bin/python -m tools.wake_time .peers/model --engine vllm --idle-warm off --rounds 5

All words after the model are those of `vllm-cli serve`, but for --rounds (10). For one of many models:
`tools.swap_time`.
"""

import http.client
import sys
import time
from contextlib import suppress

from tools.served_requests import ask_json, is_standby_ready, print_times, run_server, time_first_token, wait_for


def main(words: list[str]) -> None:
    """Prints each time and the median, in seconds."""
    num_rounds = 10
    if "--rounds" in words:
        at = words.index("--rounds")
        num_rounds = int(words[at + 1])
        del words[at : at + 2]
    has_standby = "off" not in words
    with run_server([*words, "--idle-stop", "1s"]) as (server, port):
        print_times([_round(server.pid, port, has_standby=has_standby) for _ in range(num_rounds)])


def _round(pid: int, port: int, *, has_standby: bool) -> float:
    """One request once the model is stopped and the imports of the standby are done."""
    wait_for(
        lambda: _state(port) == "stopped" and (not has_standby or is_standby_ready(pid)), "the model was not stopped"
    )
    time.sleep(1.0)
    return time_first_token(port)


def _state(port: int) -> str | None:
    with suppress(OSError, http.client.HTTPException):
        return ask_json(port, "/health")[2].get("Model-State")
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
