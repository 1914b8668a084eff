"""The command line and --config become a typed configuration: names, precedence, limits, logs."""

import json
import shlex
from pathlib import Path

import click
import pytest

from base.errors import ConfigError
from router.words.router_words import read_several
from server.terms.limits import LimitsConfig, flag_of
from startup.settings.config import DEFAULT_MODEL_ID
from startup.words.errors import InputError
from startup.words.serve_command import read_start
from startup.words.supported import GROUPS
from vllm_cli.commands.serve import serve
from vllm_cli.main import main

_PAGES = [(Path(__file__).parents[3] / "docs" / name).read_text() for name in ("api.md", "flags.md")]
DOCS = "".join(page.partition("\n## Limits\n")[2] for page in _PAGES)


def test_without_words_every_setting_has_its_default(parse):
    config = parse()
    assert config.model.model is None
    assert config.server.served_model_names == (DEFAULT_MODEL_ID,)
    assert (config.start_method, config.engine_ready_timeout_s, config.logging_level) == ("forkserver", 600, "INFO")
    assert (config.server.network.port, config.server.network.api_keys) == (8000, ())
    assert config.engine.enable_prefix_caching is True
    assert config.renderer.num_workers == 2


def test_the_served_name_is_the_model_unless_another_is_given(parse):
    assert parse("org/model").server.served_model_names == ("org/model",)
    assert parse("org/model", "--served-model-name", "a", "b").server.served_model_names == ("a", "b")
    assert parse("--model", "flagged").model.model == "flagged"
    assert parse("positional", "--model", "flagged").model.model == "positional"


@pytest.mark.parametrize(
    ("words", "override"),
    [
        ((), {"temperature": 0}),
        ((DEFAULT_MODEL_ID, "--override-generation-config.top_p", "0.9"), {"temperature": 0, "top_p": 0.9}),
        (("--override-generation-config.temperature", "0.5"), {"temperature": 0.5}),
        (("--generation-config", "auto"), {}),
        (("org/model",), {}),
    ],
)
def test_only_the_default_model_is_greedy_unless_asked_otherwise(parse, words, override):
    assert parse(*words).server.generation.override_generation_config == override


def test_a_setting_of_several_layers_reaches_all_of_them(parse):
    config = parse("m", "--trust-remote-code", "--max-logprobs", "5")
    assert config.engine.trust_remote_code and config.renderer.trust_remote_code
    assert (config.engine.max_logprobs, config.server.generation.max_logprobs) == (5, 5)


def test_values_are_typed(parse):
    config = parse(
        *("m", "--max-model-len", "8K", "--kv-cache-memory-bytes", "1.5g", "--shutdown-timeout", "2"),
        *("--http-max-body-size", "1MiB", "--max-num-queued-reqs", "1k", "--allowed-media-domains", "a.example", "b"),
        *("--allowed-origins", '["https://a"]', "--allowed-methods", "[]", "--dtype", "bfloat16"),
        *("--default-chat-template-kwargs", '{"x": true}', "--override-generation-config.temperature", "0.5"),
        *("--no-enable-prefix-caching", "--log-level", "debug"),
    )
    assert (config.engine.max_model_len, config.engine.kv_cache_memory_bytes) == (8192, 1_500_000_000)
    assert config.server.lifecycle.shutdown_timeout_s == 2.0
    assert (config.limits.max_body_bytes, config.limits.max_queued_requests) == (1 << 20, 1000)
    assert config.renderer.allowed_media_domains == ("a.example", "b")
    assert (config.server.network.allowed_origins, config.server.network.allowed_methods) == (("https://a",), ())
    assert config.engine.dtype == "bfloat16"
    assert config.renderer.default_chat_template_kwargs == {"x": True}
    assert config.server.generation.override_generation_config == {"temperature": 0.5}
    assert config.engine.enable_prefix_caching is False
    assert config.logging_level == "DEBUG"


def test_a_chat_template_is_read_from_its_file(parse, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert parse("m", "--chat-template", str(tmp_path / "t.jinja")).renderer.chat_template == "{{ messages }}"


def test_the_key_is_taken_from_option_then_variable_then_file(parse, monkeypatch, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("api-key: [filed]\nport: 1\n", encoding="utf-8")
    words = ("m", "--config", str(file))
    assert parse(*words).server.network.api_keys == ("filed",)
    monkeypatch.setenv("VLLM_API_KEY", "set")
    assert parse(*words).server.network.api_keys == ("set",)
    assert parse(*words, "--api-key", "given", "too").server.network.api_keys == ("given", "too")
    assert parse("m").server.network.api_keys == ("set",)


def test_variables_without_a_flag_reach_their_fields(parse, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "7")
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "9")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("HF_TOKEN", "secret")
    config = parse("m")
    assert (config.start_method, config.engine_ready_timeout_s) == ("spawn", 7)
    assert (config.server.timeout_keep_alive_s, config.engine.num_threads) == (9, 2)
    assert config.model.hf_token == "secret"


def test_an_empty_key_or_token_is_none(parse, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert parse("m", "--api-key", "").server.network.api_keys == ()
    assert parse("m", "--hf-token").model.hf_token is None, "the hub's client chooses"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("",), "MODEL"),
        ((" ",), "MODEL"),
        (("--model", ""), "--model"),
        (("m", "--served-model-name", ""), "--served-model-name"),
        (("m", "--config="), "--config"),
        (("m", "--tokenizer", "", "--seed", "1"), "--tokenizer"),
    ],
)
def test_a_word_that_an_unset_variable_leaves_empty_is_no_default(parse, words, name):
    """If MODEL is unset, `${MODEL}` in a script or manifest must not start the default model."""
    with pytest.raises(InputError, match=f"^{name} is empty: set the variable"):
        parse(*words)


def test_a_setting_that_an_unset_variable_leaves_empty_is_no_default(parse, write):
    with pytest.raises(InputError, match="^--tokenizer is empty: set the variable"):
        parse("m", "--config", write("tokenizer: ${NOT_SET:-}\n"))


@pytest.mark.parametrize("flag", ["--host", "--uds", "--root-path", "--revision", "--download-dir"])
def test_what_vllm_takes_empty_is_as_if_it_were_not_given(parse, flag):
    assert parse("m", flag, "") == parse("m")


@pytest.mark.parametrize(
    "words",
    [("--port", "http"), ("--dtype", "int8"), ("--max-model-len", "long"), ("--allowed-origins", "*")],
    ids=" ".join,
)
def test_a_value_of_the_wrong_type_is_a_usage_error(parse, words):
    with pytest.raises(click.BadParameter) as caught:
        parse("m", *words)
    assert f"Invalid value for '{words[0]}'" in caught.value.format_message()


def test_a_list_that_contains_the_model_is_an_error(parse):
    with pytest.raises(InputError, match="MODEL must come before --served-model-name"):
        parse("--served-model-name", "name", "model")
    assert parse("--served-model-name", "a", "--served-model-name", "b").server.served_model_names == ("a", "b")


def test_every_example_in_the_help_is_a_valid_command_line():
    examples = [line.strip() for line in (serve.help or "").splitlines() if line.strip().startswith("vllm-cli serve")]
    assert len(examples) >= 4
    for example in examples:
        read = read_start(shlex.split(example)[2:])
        assert read.start or read_several(read.words)


@pytest.mark.parametrize("flag", GROUPS["Limits"], ids=lambda flag: flag.name)
def test_messages_and_docs_name_the_flag_of_the_field(flag):
    (path,) = flag.fields
    assert flag_of(path.removeprefix("limits.")) == flag.name
    assert f"`{flag.name} " in DOCS


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("VLLM_MAX_N_SEQUENCES", "max_choices"),
        ("VLLM_MAX_COMPLETION_PROMPTS", "max_prompts"),
        ("VLLM_MAX_STOP_STRINGS", "max_stop_strings"),
    ],
)
def test_variables_of_vllm_set_limits(parse, monkeypatch, variable, field):
    assert getattr(parse("m").limits, field) == getattr(LimitsConfig(), field)
    monkeypatch.setenv(variable, "16384")
    assert getattr(parse("m").limits, field) == 16384
    assert f"`{variable}`" in DOCS


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--max-num-seqs", "0", "1 or more, got 0"),
        ("--http-header-timeout", "0", "above 0, got 0.0"),
        ("--http-send-timeout", "-1", "above 0, got -1.0"),
        ("--max-num-queued-reqs", "-1", "0 or more, got -1"),
    ],
)
def test_a_value_out_of_range_names_the_flag(parse, flag, value, expected):
    with pytest.raises(ConfigError, match=f"{flag} must be {expected}"):
        parse("m", f"{flag}={value}")


def test_the_content_of_the_log_config_file_is_the_configuration(parse, tmp_path, monkeypatch):
    path = tmp_path / "logs.json"
    path.write_text(json.dumps({"version": 1}))
    assert parse("m", "--log-config-file", str(path)).log_config == {"version": 1}
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(path))
    assert parse("m").logs.config == {"version": 1}


@pytest.mark.parametrize("words", ["/health,/metrics", " /health , /metrics ,"])
def test_paths_are_separated_by_commas(parse, words):
    config = parse("m", "--disable-access-log-for-endpoints", words)
    assert config.server.logging.disable_access_log_for_endpoints == ("/health", "/metrics")


def test_statistics_have_an_interval_or_are_not_logged(parse, monkeypatch):
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "2.5")
    config = parse("m", "--disable-log-stats")
    assert (config.server.logging.disable_log_stats, config.server.logging.log_stats_interval_s) == (True, 2.5)


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "soon"])
def test_an_interval_must_be_a_number_above_0(monkeypatch, capsys, value):
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", value)
    assert main(["serve", "--preflight-only"]) == 2
    assert f"VLLM_LOG_STATS_INTERVAL must be a number above 0, got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["flag", "variable", "file"])
def test_notices_have_the_format_of_the_log(place, parse, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VCLI_XYZZY", "1")
    words: tuple[str, ...] = ()
    if place == "flag":
        words = ("--log-format", "json")
    elif place == "variable":
        monkeypatch.setenv("VCLI_LOG_FORMAT", "json")
    else:
        (tmp_path / "config.yaml").write_text("log-format: json\n")
        words = ("--config", str(tmp_path / "config.yaml"))
    parse("m", "--enforce-eager", *words)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines] == [
        "VCLI_XYZZY is not a variable of vllm-cli.",
        "--enforce-eager has no effect: torch and transformers choose the kernels.",
    ]
    assert {(line["level"], line["role"], line["phase"]) for line in lines} == {("WARNING", "api", "command_line")}


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


def test_an_option_takes_precedence_over_the_file(parse, write):
    assert parse("m", "--config", write("# nothing\n")).server.network.port == 8000
    file = write("enable-prefix-caching: false\nmax-model-len: 1k\n")
    engine = parse("m", "--config", file).engine
    assert (engine.enable_prefix_caching, engine.max_model_len) == (False, 1000)
    engine = parse("m", "--config", file, "--enable-prefix-caching", "--max-model-len", "auto").engine
    assert (engine.enable_prefix_caching, engine.max_model_len) == (True, None)
    assert parse("m", "--config", write("tensor-parallel-size: 2\n"), "-tp", "1").model.model == "m"


def test_variables_stand_for_values_in_the_file(parse, write, monkeypatch):
    monkeypatch.setenv("WHERE", "org")
    monkeypatch.setenv("CACHE", "false")
    file = write("model: ${WHERE}/model\nport: ${OTHER:-8001}\nenable-prefix-caching: ${CACHE}\n")
    config = parse("--config", file)
    assert (config.model.model, config.server.network.port) == ("org/model", 8001)
    assert config.engine.enable_prefix_caching is False


def test_vllm_gets_no_empty_model(invoke):
    done = invoke("serve", "", "--engine", "vllm")
    assert (done.returncode, done.stderr[:23]) == (2, "Error: MODEL is empty: ")


@pytest.mark.parametrize("text", ["api-key: ${NOT_SET}", "hf-token: [a, '${NOT_SET}']", "port: ${NOT_SET:?why}"])
def test_vllm_gets_no_reference_as_a_secret_or_where_it_is_required(write, invoke, text):
    """Otherwise, everybody who reads the file would know the key."""
    done = invoke("serve", "m", "--engine", "vllm", "--config", write(text))
    assert done.returncode == 2
    assert f"--config: {text.partition(':')[0]}: NOT_SET is not set" in done.stderr


def test_a_rejected_flag_in_a_file_is_an_error(parse, write):
    with pytest.raises(InputError, match="--tensor-parallel-size 2 requests several devices.*--engine vllm"):
        parse("m", "--config", write("tensor-parallel-size: 2\n"))


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
        ("a: 1\nport: ${VCLI_UNSET}\n", r"port: VCLI_UNSET is not set: set it, or write a default"),
    ],
)
def test_an_invalid_file_is_an_error_of_one_line_with_its_name(parse, write, text, message):
    file = write(text)
    with pytest.raises(InputError, match=message) as caught:
        parse("m", "--config", file)
    assert file in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: abc\n", "serve.yaml: port: 'abc' is not a valid integer"),
        ("port: 700000\n", "serve.yaml: port must be between 0 and 65535, got 700000"),
        ("log-format: xml\n", "serve.yaml: log-format: 'xml' is not one of 'text', 'text-utc', 'json'"),
    ],
)
def test_an_invalid_value_in_a_file_is_an_error_with_its_place(parse, write, text, message):
    with pytest.raises(click.ClickException) as caught:
        parse("m", "--config", write(text))
    assert message in caught.value.format_message()


def test_an_invalid_value_that_is_not_from_the_file_has_no_place(parse, write):
    with pytest.raises(ConfigError, match="^--port must be"):
        parse("m", "--config", write("port: 8001\n"), "--port", "700000")


def test_a_missing_file_is_an_error_of_one_line_with_its_name(parse, tmp_path):
    with pytest.raises(InputError, match="missing.yaml: cannot be read: No such file"):
        parse("m", "--config", str(tmp_path / "missing.yaml"))
