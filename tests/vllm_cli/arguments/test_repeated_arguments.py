"""Arguments of a server's command that stand twice, as behind an image's entrypoint, and retired ones."""

import pytest

from tests.support.marks import thorough_but_for

_AGAIN = (
    "vllm serve",
    "vllm-cli serve",
    "serve",
    "vllm",
    "vllm-cli",
    "/usr/bin/vllm serve",
    "./vllm-cli serve",
    "python3 -m vllm.entrypoints.openai.api_server",
    "python -m vllm_cli serve",
    "/opt/x/bin/python3.12 -m vllm_cli",
    "bash -c",
    "/bin/sh -ec",
)


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
@pytest.mark.parametrize(
    "before", thorough_but_for(["", "--port 8001 ", "--host=h --api-key k --disable-log-stats "], "--port 8001 ")
)
@pytest.mark.parametrize("rest", thorough_but_for(["", " org/m", " --model org/m --port 1"], " org/m"))
@pytest.mark.parametrize("again", _AGAIN)
def test_arguments_that_stand_twice_are_named(again, rest, before, engine, invoke, monkeypatch):
    monkeypatch.setenv("VCLI_ENGINE", engine)
    done = invoke("serve", *f"{before}{again}{rest}".split())
    assert done.returncode == 2
    assert f"the arguments `{again}` stand twice" in done.stderr


@pytest.mark.parametrize("command", ["doctor", "prefetch", "bake"])
@pytest.mark.parametrize("again", ["vllm serve", "serve"])
def test_other_commands_name_them(command, again, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(command, *again.split(), "org/m")
    assert done.returncode == 2
    assert f"`{again}` stand twice" in done.stderr


@pytest.mark.parametrize("again", ["vllm", "vllm-cli", "/usr/bin/vllm-cli", "python3 -m vllm_cli"])
@pytest.mark.parametrize("command", ["serve M", "doctor", "wait"])
def test_a_program_before_its_command_is_named(again, command, invoke):
    done = invoke(*again.split(), *command.split())
    assert done.returncode == 2
    assert f"The arguments `{again}` stand twice: leave them out." in done.stderr


def test_no_model_of_a_file_has_the_name_of_the_program(invoke, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text("models:\n  m: {model: vllm}\n")
    assert "models.m: the arguments `vllm` stand twice" in invoke("serve", "--models", file).stderr


@pytest.mark.parametrize("arguments", ["org/vllm", "serve/vllm", "org/serve", "vllm.x", "servers", "vllm-clip"])
def test_other_names_are_models(arguments, parse):
    assert parse(arguments).model.model == arguments


@pytest.mark.parametrize("name", ["serve", "vllm", "vllm-cli"])
def test_a_folder_of_the_same_name_is_a_model(name, parse, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert parse(name).model.model == name
    assert parse("--port", "1", name).model.model == name


def test_several_folders_of_the_same_names_are_models(tmp_path, monkeypatch, invoke):
    for name in ("vllm", "serve"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    done = invoke("serve", "vllm", "serve", "--preflight-only")
    assert "stand twice" not in done.stdout + done.stderr
    (tmp_path / "serve").rmdir()
    assert "`vllm serve` stand twice" in invoke("serve", "vllm", "serve", "org/m").stderr
