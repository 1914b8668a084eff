"""The launcher reads from vLLM's command line the model, the address, and whether vLLM listens on a port."""

import argparse
import errno
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from unittest.mock import Mock

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from startup.arguments.embedded_line import options_of_settings
from startup.arguments.table import FLAGS, find_flag
from startup.errors import StartupError
from startup.settings.flag import Flag
from startup.vllm.vllm_main import arguments_with_copy
from startup.vllm_arguments import installed, vllm_line
from startup.vllm_arguments.flags import USUAL, Flags, flags_that_change
from startup.vllm_arguments.installed import InstalledVllm, TorchBuild
from startup.vllm_arguments.json_shape import shape_of, shape_problem
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import VllmRecord, flags_of_parser
from tests.startup.vllm import small_parser
from tests.startup.vllm.small_parser import SmallConfig
from tests.support.growth import growth
from tests.support.properties import given, settings, st
from tests.support.reading import read_both
from tests.support.vllm_flags import VLLM_NAMES, is_own
from tests.vllm_engine.test_vllm_record import JSON_VALUES


def _line(text: str) -> VllmLine:
    return VllmLine.of(text.split())


def _install(monkeypatch, folder, record, version="0.33.0"):
    """Installs a fake vLLM of this version, with these recorded record."""
    monkeypatch.setattr(vllm_line, "find_vllm", lambda: InstalledVllm(version, folder))
    monkeypatch.setattr(vllm_line, "read_record", lambda _: record)


def test_before_the_flags_of_a_newer_release_are_recorded_no_word_is_moved(tmp_path, monkeypatch):
    _install(monkeypatch, tmp_path, VllmRecord(), "0.34.0")
    assert _line("--enforce-eager m").arguments == ("--enforce-eager", "m")


def test_recorded_flags_decide_about_an_abbreviation(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser(add_help=False)
    for name in ("--port", "--host", "--portal", "--uds"):
        parser.add_argument(name)
    _install(monkeypatch, tmp_path, VllmRecord(tuple(flags_of_parser(parser))))
    assert [_line(f"m {arguments}").port for arguments in ("--port 9", "--por 9", "--ho x", "--h x")] == [
        9,
        None,
        8000,
        None,
    ]
    assert _line("m --ho x").host == "x"


@pytest.mark.parametrize("arguments", ["m --port 0 -tp 1", "m --port=0 -- x", "m --lora-modules a=b"])
def test_the_port_that_the_system_has_chosen_is_the_last_one_given(arguments):
    line = _line(arguments).with_last("--port", "41000")
    assert (line.port, VllmLine.of(line.arguments).port) == (41000, 41000)


def test_vllm_gets_another_file_if_variables_are_replaced(tmp_path, monkeypatch):
    """The other file has the values, and is only in memory. The launcher itself also reads the values."""
    monkeypatch.setenv("WHERE", "org")
    path = tmp_path / "serve.yaml"
    path.write_text("model: ${WHERE}/model\nport: ${OTHER:-8001}\n")
    given = ["--enforce-eager", "--config", str(path), "--port", "1"]
    assert VllmLine.of(given[:3]).model == "org/model"
    with ExitStack() as stack:
        arguments = arguments_with_copy(VllmLine.of(given), stack)
        replaced = Path(arguments[2])
        assert [*arguments[:2], *arguments[3:]] == [*given[:2], *given[3:]]
        assert replaced.suffix == ".yaml"
        assert yaml.safe_load(replaced.read_text()) == {"model": "org/model", "port": 8001}
        assert replaced.is_symlink()
        assert "memfd:" in str(replaced.resolve())
    assert not replaced.parent.exists()


@pytest.mark.parametrize(
    "content",
    [b"model: org/model\n", b"model: ${WHERE}\n", b"model: [${\n", "# caf\xe9\nport: 9000\n".encode("latin-1")],
)
def test_vllm_gets_the_users_file_if_nothing_is_replaced(content, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WHERE", raising=False)
    path = tmp_path / "serve.yaml"
    path.write_bytes(content)
    given = ["--config", str(path)]
    with ExitStack() as stack:
        assert [*arguments_with_copy(VllmLine.of(given), stack)] == given
    is_missing = content == b"model: ${WHERE}\n"
    assert caplog.messages == (["--config: model: WHERE is not set: vLLM gets the text as it is"] * is_missing)


def _refuse(number: int) -> Mock:
    return Mock(side_effect=OSError(number, os.strerror(number)))


_KEY: Final = "api-key: ${MYKEY}\n"


@pytest.mark.parametrize(
    ("content", "is_set", "broken", "reason"),
    [
        (_KEY.encode(), True, ("tempfile.tempdir", "/missing/folder"), "no copy .* No such file"),
        (_KEY.encode(), True, ("os.memfd_create", _refuse(errno.ENOSYS)), "no copy .* Function not implemented"),
        (_KEY.encode(), True, ("pathlib.Path.symlink_to", _refuse(errno.ENOSPC)), "no copy .* No space left"),
        (_KEY.encode(), False, None, "api-key: MYKEY is not set"),
        (b"port: ${MYKEY:?a port}\n", False, None, r"MYKEY is not set \(a port\)"),
        ("# caf\xe9\n".encode("latin-1") + _KEY.encode(), True, None, "is not a text file in UTF-8"),
        (b"a: &a [*a]\n" + _KEY.encode(), True, None, "is nested too deeply"),
        (None, True, None, "cannot be read: No such file"),
    ],
    ids=["no-folder", "no-memory-file", "no-link", "secret-unset", "required-unset", "latin-1", "circle", "unreadable"],
)
def test_vllm_never_gets_a_reference_for_a_key(content, is_set, broken, reason, tmp_path, monkeypatch):
    """Otherwise vLLM would accept `${MYKEY}` as the API key."""
    monkeypatch.delenv("MYKEY", raising=False)
    if is_set:
        monkeypatch.setenv("MYKEY", "sk-right")
    path = tmp_path / "serve.yaml"
    if content is not None:
        path.write_bytes(content)
    line = VllmLine.of(["m", "--config", str(path)])
    if broken is not None:
        monkeypatch.setattr(*broken)
    with ExitStack() as stack, pytest.raises(StartupError, match=reason) as error:
        arguments_with_copy(line, stack)
    assert "sk-right" not in str(error.value)


@pytest.mark.parametrize(
    ("version", "build", "is_tested"),
    [
        ("0.29.0+cpu", None, True),
        ("0.34.0+cpu", None, False),
        ("0.33.0", TorchBuild((13, 0)), True),
        ("0.32.0", TorchBuild((13, 0)), True),
        ("0.31.0", TorchBuild((12, 8)), False),
        ("0.33.0+rocm700", TorchBuild(None, hip="7.0"), False),
        ("0.33.0+xpu", TorchBuild(None, xpu="20250101"), False),
    ],
)
def test_starts_are_tested_for_pairs_of_release_and_device(version, build, is_tested, monkeypatch, tmp_path):
    monkeypatch.setattr(installed, "read_torch_build", lambda: build)
    assert InstalledVllm(version, tmp_path).is_start_tested == is_tested


_ARGPARSE = small_parser.build()
_FACTS = VllmRecord(tuple(flags_of_parser(_ARGPARSE)))
_OPTIONS = [
    "--tensor-parallel-size",
    "-tp",
    "--quantization",
    "-q",
    "--dtype",
    "--port",
    "--host",
    "--api-key",
    "--hf-token",
    "--headless",
    "--enforce-eager",
    "--no-enforce-eager",
    "--disable-lora",
    "--max-num-seqs",
    "--max-model-len",
    "--served-model-name",
    "--gpu-memory-utilization",
    "--allowed-origins",
    "--moe-backend",
    "--unknown",
    "-x",
]
_VALUES = st.sampled_from(["1", "-1", "x", "{}", "None", "", "a b", "-a b", "-", "-x", "half", "auto", "deep-gemm"])


@st.composite
def _flag(draw: st.DrawFn) -> list[str]:
    """The arguments of a flag with values. It may be abbreviated, or have its value in the same argument."""
    option = draw(st.sampled_from(_OPTIONS))
    name = option[: draw(st.integers(3 if option.startswith("--") else 2, len(option)))]
    values = draw(st.lists(_VALUES, max_size=2))
    match draw(st.sampled_from(["apart", "apart", "=", ""])):
        case "=" if values:
            return [f"{name}={values[0]}", *values[1:]]
        case "" if values and len(name) == 2:
            return [name + values[0], *values[1:]]
    return [name, *values]


@pytest.mark.thorough
@settings(max_examples=150)
@given(st.lists(_flag(), max_size=4), st.booleans())
def test_arguments_are_read_as_argparse_reads_them(parts, begins_with_model):
    flags = [argument for part in parts for argument in part]
    arguments = ["m", *flags] if begins_with_model else [*flags, "--", "m"]
    reading = read_both(arguments, _FACTS, _ARGPARSE.parse_args)
    assert reading.differences == []
    assert bool(reading.faults) != reading.is_accepted


_SHAPE = shape_of(SmallConfig)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"foo": 1}, "-cc has no field 'foo'"),
        ({"own": "x"}, "-cc has no field 'own'"),
        ({"passes": {"fus": 1}}, "-cc has no field 'passes.fus' (did you mean 'fuse'?)"),
        ({"made": {"fus": 1}}, "-cc has no field 'made.fus' (did you mean 'fuse'?)"),
        ({"named": "3"}, "-cc: named '3' is not one of NONE, FULL_GRAPH, auto"),
        ({"named": 3}, "-cc: named 3 is not one of NONE, FULL_GRAPH, auto"),
        ({"numbered": "full"}, "-cc: numbered 'full' is not one of 0, 2"),
        ({"attention": "flash"}, "-cc: attention 'flash' is not one of FLASH_ATTN, SDPA, auto"),
        ({"kernel": "deepgemm"}, "-cc: kernel 'deepgemm' is not one of auto, deep_gemm (did you mean 'deep_gemm'?)"),
        ({"mode": 4}, "-cc: mode must be 3 or less, got 4"),
        ({"names": ["a", 1]}, "-cc: names.1 1 is not a text"),
        ({"passes": {"sizes": [1, "x"]}}, "-cc: passes.sizes.1 'x' is not a whole number"),
        ({"passes": {"fuse": "maybe"}}, "-cc: passes.fuse 'maybe' is not true or false"),
        ({"passes": []}, "-cc: passes [] is not a JSON object"),
        ({"per_kind": {"a": "x"}}, "-cc: per_kind.a 'x' is not a number"),
        ({"max_num_seqs": None}, "-cc: max_num_seqs None is not a whole number"),
    ],
    ids=str,
)
def test_a_value_that_the_class_rejects(content, problem):
    assert (shape_problem(_SHAPE, content, "-cc") or "").startswith(problem)


def _accepted(content: object) -> bool:
    try:
        TypeAdapter(SmallConfig).validate_json(json.dumps(content))
    except (KeyError, ValidationError):
        return False
    return True


@pytest.mark.parametrize("name", _SHAPE.fields)
def test_no_value_that_the_class_accepts_is_rejected(name):
    texts = ("AUTO", "Full_Graph", "flash_attn", "DEEP-GEMM", "a.b.FlashAttention", "inductor", "a", *JSON_VALUES)
    nested = [{key: value} for key in ("fuse", "sizes", "a") for value in (*texts, [1, "auto"])]
    accepted = [value for value in (*texts, *nested) if _accepted({name: value})]
    assert [value for value in accepted if shape_problem(_SHAPE, {name: value}, "-cc")] == []
    assert accepted != []


_FORMER = {"--task"}


@pytest.mark.parametrize("usual", [flag for flag in USUAL if flag.name not in _FORMER], ids=lambda flag: flag.name)
def test_a_row_has_names_and_number_of_values_of_vllms_flag_and_a_clear_abbreviation(usual: Flag):
    flag = find_flag(usual.name).flag
    assert {*usual.names} <= {*flag.names}
    assert flag.nargs == usual.nargs
    prefixes = (usual.name[:length] for length in range(3, len(usual.name) + 1))
    shortest = next(prefix for prefix in prefixes if Flags().complete(prefix) == [usual.name])
    assert shortest == usual.name or [name for name in VLLM_NAMES if name.startswith(shortest)] == [usual.name]


_VLLMS = [flag for flag in FLAGS if not is_own(flag)]
_ALL = tuple(Flag(flag.names, nargs=flag.nargs) for flag in _VLLMS)


@pytest.mark.parametrize("recorded", [(), _ALL], ids=["first", "recorded"])
def test_each_name_of_a_flag_decides_alike_about_the_port(recorded):
    """An exact name is no abbreviation. Otherwise the port would be unknown until vLLM is imported."""
    for flag in _VLLMS:
        value = [] if flag.nargs == 0 else ["7"]
        spelled = [[name, *value] for name in flag.names] + [[f"{name}=7"] for name in flag.names if value]
        lines = (VllmLine.of(["m", *arguments], VllmRecord(recorded)) for arguments in spelled)
        port = 7 if flag.name == "--port" else 8000
        assert {(line.listens, line.port) for line in lines} == {(flag.name not in flags_that_change("no port"), port)}


def _by_vllm(num_keys: int) -> object:
    return VllmLine.of([f"--compilation-config.k{number}=1" for number in range(num_keys)], VllmRecord())


def _by_own_file(num_keys: int) -> object:
    return options_of_settings({f"override-generation-config.k{number}": 1 for number in range(num_keys)})


@pytest.mark.alone
@pytest.mark.parametrize("read", [_by_vllm, _by_own_file])
def test_the_keys_of_a_flag_are_joined_in_linear_time(read):
    assert growth(lambda num_keys: lambda: read(num_keys)) is None
