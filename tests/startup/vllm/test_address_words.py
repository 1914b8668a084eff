"""vLLM gets folders in place of addresses; the address stays the name that clients use."""

from pathlib import Path

import pytest

from startup.vllm.command_line import CommandLine
from startup.vllm.launch.hub_requests import with_folders
from tests.s3_server import s3_server
from tests.startup.vllm.fake_start import FakeStart, environment

MODEL, TOKENIZER = "s3://models/llama", "gs://models/words/"
NAMED = ("--served-model-name", MODEL)


def replaced(*words: str) -> tuple[str, ...]:
    """The words for vLLM once everything is downloaded into /m and /t."""
    line = CommandLine.of(words)
    assert line.plan is not None
    found = {download: Path("/t" if download.repo_id == TOKENIZER else "/m") for download in line.plan.downloads}
    return with_folders(line, found).words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((MODEL, "--port", "1"), ("/m", *NAMED, "--port", "1")),
        (("--model", MODEL), (*NAMED, "--model", "/m")),
        ((f"--model={MODEL}",), (*NAMED, "--model=/m")),
        ((MODEL, "--served-model-name", MODEL), ("/m", *NAMED)),
        ((MODEL, "--tokenizer", TOKENIZER), ("/m", *NAMED, "--tokenizer", "/t")),
        (("org/model", "--tokenizer", TOKENIZER), ("org/model", "--tokenizer", "/t")),
        ((MODEL, "--load-format", "runai_streamer"), (MODEL, "--load-format", "runai_streamer")),
        (("org/model", "--served-model-name", MODEL), ("org/model", *NAMED)),
    ],
)
def test_only_words_that_name_files_are_replaced(words: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert replaced(*words) == expected


def test_a_model_of_the_config_file_becomes_the_first_word(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"model: {MODEL}\n")
    words = ("--config", f"{tmp_path}/config.yaml")
    assert replaced(*words) == ("/m", *NAMED, *words)


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    address = f"file://{tmp_path}/a%20b"
    assert replaced(address) == (f"{tmp_path}/a b", "--served-model-name", address)


def test_a_streaming_loader_that_is_installed_is_vllms_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("startup.model.object_address.find_spec", lambda name: object())
    assert replaced(MODEL) == (MODEL,)


@pytest.mark.thorough
def test_vllm_starts_with_the_folder_of_the_download(tmp_path: Path) -> None:
    files = {
        "config.json": b'{"architectures": ["FakeForCausalLM"]}',
        "model.safetensors": b"x",
        "tokenizer.json": b"{}",
    }
    with s3_server() as s3:
        s3.put({f"llama/{name}": content for name, content in files.items()})
        variables = environment(tmp_path, **s3.environment)
        with FakeStart(tmp_path, MODEL, env=variables) as start:
            start.wait_until_ready()
            _, _, folder, *rest = start.state()["server"]["argv"]
            assert set(NAMED) <= set(rest)
            assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == files
