"""`--config file.yaml`."""

from pathlib import Path

import pytest

from vllm_cli.errors import InputError


@pytest.fixture
def write(tmp_path: Path):
    def write_text(text: str | bytes) -> str:
        file = tmp_path / "serve.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write_text


def test_keys_are_flag_names_and_the_model(parse, write):
    file = write(
        """
        model: org/model
        served_model_name: [a, b]
        max-model-len: 2k
        no-enable-prefix-caching: true
        enable-log-requests: true
        allowed-origins: ["https://a", "https://b"]
        override-generation-config:
          temperature: 0.5
        default-chat-template-kwargs.thinking: false
        hf-token:
        """
    )
    config = parse("--config", file)
    assert config.model.model == "org/model"
    assert config.server.served_model_names == ("a", "b")
    assert config.engine.max_model_len == 2000
    assert config.engine.enable_prefix_caching is False
    assert config.server.logging.enable_log_requests is True
    assert config.server.network.allowed_origins == ("https://a", "https://b")
    assert config.server.generation.override_generation_config == {"temperature": 0.5}
    assert config.renderer.default_chat_template_kwargs == {"thinking": False}


def test_an_empty_file_sets_nothing(parse, write):
    assert parse("m", "--config", write("# nothing\n")).server.network.port == 8000


def test_a_rejected_flag_in_a_file_is_an_error(parse, write):
    with pytest.raises(InputError, match="--tensor-parallel-size 2 requests several devices.*--engine vllm"):
        parse("m", "--config", write("tensor-parallel-size: 2\n"))


def test_an_option_replaces_the_value_in_the_file(parse, write):
    assert parse("m", "--config", write("tensor-parallel-size: 2\n"), "-tp", "1").model.model == "m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1\n", r"No such option: --prot \(did you mean '--port'\?\)"),
        ("port: [1\n", "is not YAML: .*line 2"),
        ("- port\n", "must be a mapping"),
        ("just text\n", "must be a mapping"),
        ("config: other.yaml\n", "cannot name another one"),
        (b"\xff\xfe\x00", "is not a text file"),
        ("enforce-eager: 3\n", "--enforce-eager takes no value"),
    ],
)
def test_an_invalid_file_is_an_error_of_one_line_with_its_name(parse, write, text, message):
    file = write(text)
    with pytest.raises(InputError, match=message) as caught:
        parse("m", "--config", file)
    assert file in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_is_an_error_of_one_line_with_its_name(parse, tmp_path):
    with pytest.raises(InputError, match="missing.yaml: cannot be read: No such file"):
        parse("m", "--config", str(tmp_path / "missing.yaml"))
