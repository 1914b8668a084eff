"""The table of flags against vLLM's list of names, and against the dataclasses that the values go into."""

from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest

from envs.registry import LOGGING_LEVELS
from server.config import DTypeName, RendererConfig
from startup.config import ModelConfig, StartupConfig
from vllm_cli.errors import InputError
from vllm_cli.flags.flag import Shape
from vllm_cli.flags.hinted import HINTED
from vllm_cli.flags.honoured import HONOURED, OWN
from vllm_cli.flags.refused import REFUSED
from vllm_cli.flags.table import FLAGS, find_flag, is_flag, spellings
from vllm_cli.serve.config import VARIABLES

VLLM_NAMES = set((Path(__file__).parent / "vllm_0_32_flags.txt").read_text().split())
HELP = {"-h", "--help"}
SECTIONS = ("model", "engine", "renderer", "server", "limits", "prefetch")
INTERNAL = {"prefetch.reserve_bytes", "prefetch.memory_bytes", "prefetch.progress_interval_s"}


def test_every_flag_of_vllm_is_known() -> None:
    assert [name for name in VLLM_NAMES - HELP if not is_flag(name)] == []


def test_no_flag_is_known_that_vllm_does_not_have() -> None:
    names = {name for flag in FLAGS if flag not in OWN for name in flag.names}
    assert names - VLLM_NAMES == set()


def test_a_flag_is_a_switch_if_and_only_if_vllm_can_negate_it() -> None:
    only_on = {
        "--headless",
        "--grpc",
        "--disable-log-stats",
        "--aggregate-engine-logging",
        "--data-parallel-multi-port-external-lb",
    }
    switches = {flag.name for flag in FLAGS if flag.shape is Shape.SWITCH and flag not in OWN}
    negatable = {f"--{name.removeprefix('--no-')}" for name in VLLM_NAMES if name.startswith("--no-")}
    assert switches == negatable | only_on


def test_every_spelling_belongs_to_one_flag() -> None:
    names = [name for flag in FLAGS for name in spellings(flag)]
    assert len(names) == len(set(names))


def test_every_flag_is_sorted_into_one_kind() -> None:
    kinds = [set(HONOURED), *(set(flags) for table in (HINTED, REFUSED) for flags in table.values())]
    assert sum(map(len, kinds)) == len(FLAGS)


def test_every_honoured_flag_has_a_field() -> None:
    existing = _field_paths()
    assert [flag.name for flag in HONOURED for path in flag.fields if path not in existing] == []
    assert {flag.name for flag in HONOURED if not flag.fields} == {
        "--engine",
        "--config",
        "--preflight-only",
        "--json",
    }


def test_every_field_can_be_set() -> None:
    settable = {path for flag in HONOURED for path in flag.fields} | set(VARIABLES)
    assert _field_paths() - settable == INTERNAL


@pytest.mark.parametrize(
    ("flag", "choices"),
    [
        ("--dtype", get_args(DTypeName)),
        ("--chat-template-content-format", get_args(get_type_hints(RendererConfig)["chat_template_content_format"])),
        ("--log-level", LOGGING_LEVELS),
    ],
)
def test_choices_are_those_of_the_field(flag: str, choices: tuple[str, ...]) -> None:
    declared = find_flag(flag).flag.type
    assert isinstance(declared, click.Choice)
    assert tuple(declared.choices) == tuple(choices)


def test_dashes_and_underscores_are_the_same() -> None:
    assert find_flag("--max_model_len") == find_flag("--max-model-len")
    assert find_flag("--no_enable_prefix_caching").is_negated


def test_an_unknown_flag_is_guessed() -> None:
    with pytest.raises(InputError, match=r"No such option: --max-modl-len \(did you mean --max-model-len\?\)"):
        find_flag("--max-modl-len")


def test_nothing_like_a_flag_is_not_guessed() -> None:
    with pytest.raises(InputError, match="No such option: --xyzzy$"):
        find_flag("--xyzzy")


def _field_paths() -> set[str]:
    hints = get_type_hints(StartupConfig)
    assert hints["model"] is ModelConfig
    inner = {f"{section}.{field.name}" for section in SECTIONS for field in fields(hints[section])}
    return inner | {field.name for field in fields(StartupConfig) if field.name not in SECTIONS}
