"""The settings of `--idle-stop`, and what does not go with it."""

from pathlib import Path

import click
import pytest

from startup.config import StartupConfig
from vllm_cli.errors import InputError
from vllm_cli.flags.engine_choice import vllm_options
from vllm_cli.flags.front_options import embedded_front, vllm_front
from vllm_cli.flags.serve_command import build_startup_config


def _config(**settings: object) -> StartupConfig:
    return build_startup_config({"model": "nowhere", "idle_stop": 600.0, **settings})


def test_the_server_gets_the_same_words_without_keys() -> None:
    words = ["nowhere", "--idle-stop", "10m", "--api-key", "secret", "--port", "1"]
    front = embedded_front(_config(port=1, startup_timeout=30.0), words)
    assert front.command.words == ["nowhere", "--idle-stop", "10m", "--port", "1"]
    assert front.command.variables == {"VLLM_API_KEY": "secret"}
    assert (front.idle_stop_s, front.wait_s, front.address.port, front.model_name) == (600, 30, 1, "nowhere")
    assert front.find_model() is None


def test_several_keys_are_refused_as_others_could_read_them() -> None:
    with pytest.raises(InputError, match="use --api-key-file"):
        embedded_front(_config(), ["nowhere", "--api-key", "one", "two"])


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, "embedded"), ({"idle_warm": "off"}, None), ({"standby": "off"}, None), ({"trust_remote_code": True}, None)],
    ids=["default", "no idle warm", "no standby", "remote code"],
)
def test_a_standby_is_kept_unless_it_cannot_be_used(settings: dict[str, object], kind: str | None) -> None:
    assert embedded_front(_config(**{"standby": "auto", **settings}), ["nowhere"]).standby_kind == kind


def test_tls_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match="--ssl-certfile: end TLS in front of the server"):
        embedded_front(_config(ssl_certfile="a", ssl_keyfile="b"), ["nowhere"])


@pytest.mark.parametrize(
    "words",
    [
        ["--ssl-certfile", "a"], ["--headless"], ["--api-server-count", "2"], ["-dp", "2"], ["--nnodes=2"],
        ["--grpc"], ["--port", "0"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_vllm_cannot_have_behind_a_front_is_refused(words: list[str]) -> None:
    with click.Context(click.Command("serve")) as ctx:
        options = vllm_options(ctx, ["m", "--idle-stop", "10m", *words])
    with pytest.raises(InputError, match="--idle-stop"):
        vllm_front(options, [])


def test_one_api_server_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLI_IDLE_STOP", "90s")
    with click.Context(click.Command("serve")) as ctx:
        options = vllm_options(ctx, ["m", "--api-server-count", "1", "--enforce-eager"])
    front = vllm_front(options, ["m", "--enforce-eager"])
    assert (front.idle_stop_s, front.address.port) == (90, 8000)


def test_plain_vllm_owns_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLI_PLAIN_VLLM", "1")
    with click.Context(click.Command("serve")) as ctx:
        options = vllm_options(ctx, ["m", "--idle-stop", "10m"])
    with pytest.raises(InputError, match="VCLI_PLAIN_VLLM"):
        vllm_front(options, [])


def test_a_model_on_disk_is_found_for_the_standby(tiny_llama: Path) -> None:
    assert embedded_front(_config(model=str(tiny_llama)), []).find_model() == str(tiny_llama)


def test_the_front_knows_the_keys_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    request = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n"
    assert embedded_front(_config(api_key=["a"]), ["nowhere"]).keys.find_rejection(request) is not None
    assert embedded_front(_config(), ["nowhere"]).keys.find_rejection(request) is None

    def is_rejected(*words: str) -> bool:
        with click.Context(click.Command("serve")) as ctx:
            options = vllm_options(ctx, ["m", "--idle-stop", "10m", *words])
        return vllm_front(options, ["m", *words]).keys.find_rejection(request) is not None

    assert is_rejected("--api-key", "a")
    assert not is_rejected("--api-key", "a", "--middleware", "module.name")
    monkeypatch.setenv("VLLM_API_KEY", "a")
    assert is_rejected()
