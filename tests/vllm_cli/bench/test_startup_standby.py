"""`bench startup --state standby` as a process: warm starts of `vllm-cli serve`, cold starts of others."""

import json
import shlex
import sys

import pytest

from tests.support.llamas import save_tiny_llama
from vllm_cli.bench.standby import find_template_kind, split_own_command

QUICK = ("--state", "standby", "--rounds", "1", "--pause", "0")
PROGRAM = (sys.executable, "-m", "vllm_cli")
SERVE = shlex.join([*PROGRAM, "serve"])


@pytest.fixture(scope="module")
def own_command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`vllm-cli serve` with a model that loads at once."""
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
    return f"{SERVE} {model} --served-model-name tiny --engine embedded"


@pytest.mark.slow
def test_warm_starts_beside_cold_ones_and_beside_another_program(own_command, fake_command, invoke):
    done = invoke(
        "bench", "startup", "--cmd", own_command, "--vs", fake_command(), *QUICK, "--state", "warm", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    ours, theirs = result["sides"]
    warm, cold = ours["conditions"]
    assert (warm["condition"], cold["condition"]) == ("from standby", "from warm")
    assert all("api:fork_from_standby" in figures["spans_end_s"] for figures in warm["rounds"])
    assert not any("api:fork_from_standby" in figures["spans_end_s"] for figures in cold["rounds"])
    assert ours["standby"]["num_starts"] == 2
    assert ours["standby"]["memory_bytes"] > 10_000_000
    assert "standby" not in theirs
    assert {ratio["condition"] for ratio in result["ratios"]} == {"from standby", "from warm"}
    assert "; standby: " in done.stderr
    assert result["problems"] == []


@pytest.mark.parametrize(("script", "texts"), [
    pytest.param("[ $1 = serve ] && export OMP_DYNAMIC=true", ["OMP_DYNAMIC differs"], marks=pytest.mark.slow),
    pytest.param(
        "[ $1 = standby ] && [ $2 = --for ] && echo no imports today && exit 3",
        ["The standby of ", "no imports today"],
        marks=pytest.mark.thorough,
    ),
], ids=["start", "standby"])  # fmt: skip
def test_a_start_or_standby_that_cannot_be_warm_exits_with_3_and_the_reason(
    script, texts, own_command, invoke, tmp_path
):
    wrapper = tmp_path / "vllm-cli"
    wrapper.write_text(f'#!/bin/sh\n{script}; exec {sys.executable} -m vllm_cli "$@"\n')
    wrapper.chmod(0o755)
    command = own_command.replace(f"{sys.executable} -m vllm_cli", str(wrapper))
    done = invoke("bench", "startup", "--cmd", command, *QUICK)
    assert done.returncode == 3, done.stdout
    assert all(text in done.stderr for text in texts)


@pytest.mark.parametrize(("command", "prefix", "kind"), [
    ("vllm serve DIR", [], None),
    ("transformers serve", [], None),
    ("vllm-cli wait serve", [], None),
    (f"{SERVE} DIR", [*PROGRAM], None),
    (f"A=1 {SERVE}", ["env", "A=1", *PROGRAM], None),
    (f"nice {sys.executable} -P -m vllm_cli serve", ["nice", sys.executable, "-P", "-m", "vllm_cli"], None),
    (f"{SERVE} --engine vllm", [*PROGRAM], "vllm-compiled"),
    (f"{SERVE} --engine=vllm --enforce-eager", [*PROGRAM], "vllm-eager"),
    (f"VCLI_ENGINE=vllm {SERVE}", ["env", "VCLI_ENGINE=vllm", *PROGRAM], "vllm-compiled"),
    (f"VCLI_ENGINE=vllm {SERVE} --engine embedded", ["env", "VCLI_ENGINE=vllm", *PROGRAM], "embedded"),
])  # fmt: skip
def test_commands_of_this_program_are_recognised_with_the_template_of_their_engine(command, prefix, kind):
    """If a command names no engine, the standby chooses the template."""
    found = split_own_command(command)
    assert found[0] == prefix
    assert not prefix or find_template_kind(*found) == kind
