"""The launcher reads from vLLM's command line the model, the address, and whether vLLM listens on a port."""

import argparse
import errno
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from unittest.mock import Mock

import pytest
import yaml

from startup.errors import StartupError
from startup.vllm.vllm_main import words_with_copy
from startup.vllm_words import command_line, installed
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import VllmFacts, facts_of_flags
from startup.vllm_words.installed import InstalledVllm, TorchBuild


def _line(text: str) -> CommandLine:
    return CommandLine.of(text.split())


def _install(monkeypatch, folder, facts, version="0.33.0"):
    """Installs a fake vLLM of this version, with these recorded facts."""
    monkeypatch.setattr(command_line, "find_vllm", lambda: InstalledVllm(version, folder))
    monkeypatch.setattr(command_line, "read_facts", lambda _: facts)


def test_before_the_flags_of_a_newer_release_are_recorded_no_word_is_moved(tmp_path, monkeypatch):
    _install(monkeypatch, tmp_path, VllmFacts(), "0.34.0")
    assert _line("--enforce-eager m").words == ("--enforce-eager", "m")


def test_recorded_flags_decide_about_an_abbreviation(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser(add_help=False)
    for name in ("--port", "--host", "--portal", "--uds"):
        parser.add_argument(name)
    _install(monkeypatch, tmp_path, VllmFacts(tuple(facts_of_flags(parser))))
    assert [_line(f"m {words}").port for words in ("--port 9", "--por 9", "--ho x", "--h x")] == [9, None, 8000, None]
    assert _line("m --ho x").host == "x"


@pytest.mark.parametrize("words", ["m --port 0 -tp 1", "m --port=0 -- x", "m --lora-modules a=b"])
def test_the_port_that_the_system_has_chosen_is_the_last_one_given(words):
    line = _line(words).with_last("--port", "41000")
    assert (line.port, CommandLine.of(line.words).port) == (41000, 41000)


def test_vllm_gets_another_file_if_variables_are_replaced(tmp_path, monkeypatch):
    """The other file has the values, and is only in memory. The launcher itself also reads the values."""
    monkeypatch.setenv("WHERE", "org")
    path = tmp_path / "serve.yaml"
    path.write_text("model: ${WHERE}/model\nport: ${OTHER:-8001}\n")
    given = ["--enforce-eager", "--config", str(path), "--port", "1"]
    assert CommandLine.of(given[:3]).model == "org/model"
    with ExitStack() as stack:
        words = words_with_copy(CommandLine.of(given), stack)
        replaced = Path(words[2])
        assert [*words[:2], *words[3:]] == [*given[:2], *given[3:]]
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
        assert [*words_with_copy(CommandLine.of(given), stack)] == given
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
    line = CommandLine.of(["m", "--config", str(path)])
    if broken is not None:
        monkeypatch.setattr(*broken)
    with ExitStack() as stack, pytest.raises(StartupError, match=reason) as error:
        words_with_copy(line, stack)
    assert "sk-right" not in str(error.value)


@pytest.mark.parametrize(
    ("version", "build", "is_tested"),
    [
        ("0.29.0+cpu", None, True), ("0.34.0+cpu", None, False), ("0.33.0", TorchBuild((13, 0)), True),
        ("0.32.0", TorchBuild((13, 0)), True), ("0.31.0", TorchBuild((12, 8)), False),
        ("0.33.0+rocm700", TorchBuild(None, hip="7.0"), False),
        ("0.33.0+xpu", TorchBuild(None, xpu="20250101"), False),
    ],
)  # fmt: skip
def test_starts_are_tested_for_pairs_of_release_and_device(version, build, is_tested, monkeypatch, tmp_path):
    monkeypatch.setattr(installed, "read_torch_build", lambda: build)
    assert InstalledVllm(version, tmp_path).is_start_tested == is_tested
