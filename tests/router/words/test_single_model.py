"""`serve MODEL --idle-stop` and `--restart`: flags of the router, flags of its model, and refused flags."""

import json
import re

import click
import pytest
import yaml

from router.child.server import ERRORS_S, OwnServer
from router.model_entry import ModelEntry
from router.router import RouterOptions
from router.words.single_model import embedded_router, vllm_router
from startup.settings.config import StartupConfig, flags_with_role
from startup.words.engine_choice import vllm_options
from startup.words.errors import InputError
from startup.words.flag import Shape
from startup.words.serve_command import read_start
from startup.words.supported import SUPPORTED
from tests.support.peer_vllm import ROOT
from tests.support.vllm_flags import VLLM_NAMES

_END = ("--engine", "embedded", "--disable-uvicorn-access-log")


def _embedded(*words: str) -> RouterOptions:
    words = (*words, "--idle-stop", "10m")
    start = read_start(words).start
    assert isinstance(start, StartupConfig)
    return embedded_router(start, words)


def _vllm(*words: str) -> RouterOptions:
    words = ("m", "--idle-stop", "10m", *words)
    return vllm_router(vllm_options(words), words)


def _only(options: RouterOptions) -> ModelEntry:
    (entry,) = options.entries.values()
    assert options.only == entry.name
    assert entry.preload
    return entry


@pytest.mark.parametrize("run", [_embedded, _vllm], ids=["embedded", "vllm"])
def test_address_tls_and_keys_are_the_router_s(run):
    words = ["--port", "0", "--ssl-certfile", "a", "--ssl-keyfile=b", "--api-key", "one", "two", "--dtype", "float32"]
    options = run(*words) if run is _vllm else run("m", *words)  # type: ignore[operator]
    assert (options.config.server.network.port, options.config.server.tls.ssl_keyfile) == (0, "b")
    assert options.config.server.network.api_keys == ("one", "two")
    assert _only(options).words[:3] == ("m", "--dtype", "float32")
    assert "--port" not in " ".join(_only(options).words)


@pytest.mark.parametrize("run", [_embedded, _vllm], ids=["embedded", "vllm"])
def test_limits_of_clients_apply_at_the_port(run):
    words = ["--http-header-timeout", "5", "--http-max-connections", "7", "--disable-access-log-for-endpoints", "/a,/b"]
    words += ["--h11-max-header-count", "300", "--http-max-body-size", "1GiB"]
    options = run(*words) if run is _vllm else run("m", *words)  # type: ignore[operator]
    limits = options.config.limits
    assert (limits.header_timeout_s, limits.max_connections, limits.max_headers) == (5, 7, 300)
    assert (limits.max_body_bytes, limits.max_held_bytes) == (1 << 30, 4 << 30)
    assert options.config.server.logging.disable_access_log_for_endpoints == ("/a", "/b")
    assert _only(options).words[:3] == ("m", "--h11-max-header-count", "300"), "the model takes as many"
    assert ("--http-max-body-size" in _only(options).words) is (run is _embedded), "vLLM has no such flag"


def test_the_model_gets_all_other_words_without_secrets():
    words = ("m", "--served-model-name", "a", "b", "--startup-timeout", "30", "--hf-token", "secret")
    entry = _only(_embedded(*words, "--log-level", "DEBUG"))
    assert entry.words == (*words[:6], "--log-level", "DEBUG", *_END)
    assert (entry.name, entry.aliases, entry.ttl_s, dict(entry.env)) == ("a", ("b",), 600, {"HF_TOKEN": "secret"})


def test_a_config_file_is_split_as_the_words_are(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("model: m\nport: 1\napi-key: key\nidle-stop: 1h\nmax-model-len: 8\nseed: 1\n")
    options = _embedded("--config", str(file), "--seed", "2")
    assert (options.config.server.network.port, options.config.server.network.api_keys) == (1, ("key",))
    assert _only(options).words == ("--model=m", "--max-model-len=8", "--seed=2", *_END)


def test_vllm_reads_its_config_file_itself_but_for_the_address(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(
        "port: 1\nmax-model-len: 8\nh11-max-header-count: 9\nroot-path: /api\nallowed-origins: [http://a]\n"
    )
    options = _vllm("--config", str(file))
    network = options.config.server.network
    assert (network.port, network.root_path, network.allowed_origins) == (1, "/api", ("http://a",))
    assert options.config.limits.max_headers == 9
    assert _only(options).words[:3] == ("m", "--config", str(file))
    file.write_text("ssl-certfile: a\n")
    with pytest.raises(InputError, match="ssl-certfile in --config: write it as a flag"):
        _vllm("--config", str(file))


_OF_PORT = {
    "--host": "127.0.0.1", "--port": "8001", "--uds": "/tmp/a.sock", "--api-key": "[one, two]",
    "--allow-credentials": "true", "--allowed-origins": "['http://a']", "--allowed-methods": "[GET]",
    "--allowed-headers": "[X-A]", "--root-path": "/api", "--disable-access-log-for-endpoints": "/a,/b",
    "--h11-max-header-count": "9", "--h11-max-incomplete-event-size": "70000", "--disable-uvicorn-access-log": "true",
    "--uvicorn-log-level": "error", "--log-level": "ERROR", "--enable-request-id-headers": "true",
}  # fmt: skip
"""vLLM's flags that are the router's own, with values as in a --config file."""
_REFUSED = {
    "--ssl-certfile": "a", "--ssl-keyfile": "a", "--ssl-ca-certs": "a", "--ssl-cert-reqs": "1", "--ssl-ciphers": "a",
    "--enable-ssl-refresh": "true", "--middleware": "a.b",
}  # fmt: skip


def test_every_flag_of_vllm_that_concerns_the_port_is_tried_in_a_file():
    roles = flags_with_role("address", "keys", "tls", "port", "both", "program")
    assert {*_OF_PORT, *_REFUSED} - {"--middleware"} == roles & VLLM_NAMES - {"--log-config-file"}


@pytest.mark.parametrize("name", _OF_PORT)
def test_a_setting_of_the_port_in_vllms_file_is_as_its_flag(name, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(f"{name.removeprefix('--')}: {_OF_PORT[name]}\n")
    value = yaml.safe_load(_OF_PORT[name])
    is_list = isinstance(value, list)
    words = [*map(str, value)] if name == "--api-key" else [json.dumps(value)] if is_list else [str(value)]
    by_file, by_flag = _vllm("--config", str(file)), _vllm(name, *([] if value is True else words))
    assert by_file.config == by_flag.config != _vllm().config
    assert by_file.model_has_keys == (name == "--api-key"), "vLLM asks for them, too"


@pytest.mark.parametrize("name", _REFUSED)
def test_a_setting_that_the_port_would_not_have_ends_the_start(name, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(f"{name.removeprefix('--')}: {_REFUSED[name]}\n")
    with pytest.raises(InputError, match=f"--idle-stop does not go with .*{name.removeprefix('--')}"):
        _vllm("--config", str(file))


def test_keys_are_in_the_file_or_on_the_command_line(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("api-key: one\n")
    with pytest.raises(InputError, match="api-key in --config and as a flag: leave one of them out"):
        _vllm("--config", str(file), "--api-key", "two")


@pytest.mark.parametrize("run", [_embedded, _vllm], ids=["embedded", "vllm"])
def test_restart_is_the_routers_with_its_limits_of_waiting(run):
    words = ["--restart", "on-failure:3", "--max-wait", "7", "--enforce-eager"]
    options = run(*words) if run is _vllm else run("m", *words)  # type: ignore[operator]
    assert (_only(options).restart_limit, _only(options).words[:2]) == (3, ("m", "--enforce-eager"))
    assert (options.limits.max_wait_s, options.limits.max_waiting) == (7, 1024)
    words += ["--max-waiting", "2"]
    assert (run(*words) if run is _vllm else run("m", *words)).limits.max_waiting == 2  # type: ignore[operator]


@pytest.mark.parametrize(
    ("value", "limit"),
    [("on-failure", 5), ("on-failure:1", 1), ("on-failure:0", None), ("on-failure:", None), ("always", None)],
)
def test_a_restart_policy_has_a_number_of_failures(value, limit, monkeypatch):
    if limit is None:
        with pytest.raises(InputError, match="is not on-failure or on-failure:N"):
            _vllm("--restart", value)
        return
    monkeypatch.setenv("VCLI_RESTART", value)
    assert _only(_vllm()).restart_limit == limit
    assert _only(_embedded("m")).restart_limit == limit


@pytest.mark.parametrize(
    "words",
    [["--headless"], ["--nnodes=2"], ["--grpc"], ["--node-rank", "0"], ["--listen-when-ready"]],
    ids=" ".join,
)
def test_what_a_router_of_one_model_cannot_have_is_refused(words):
    with pytest.raises(InputError, match="does not go with --idle-stop"):
        _vllm(*words)


@pytest.mark.parametrize(
    ("words", "kinds"),
    [((), ("embedded",)), (("--standby", "off"), ()), (("--trust-remote-code",), ())],
    ids=str,
)
def test_a_standby_is_kept_unless_it_cannot_be_used(words, kinds, monkeypatch):
    monkeypatch.setenv("VCLI_STANDBY", "auto")
    assert _embedded("m", *words).find_template_kinds() == kinds


def test_a_model_on_disk_is_found_for_the_standby(tiny_llama):
    options = _embedded(str(tiny_llama))
    assert options.find_model(str(options.only)) == str(tiny_llama)
    assert _embedded("nowhere").find_model("nowhere") is None


_SAMPLES = {Shape.SWITCH: (), Shape.VALUE: ("1",), Shape.LIST: ("1",), Shape.OPTIONAL: ("1",)}
_OF_THE_ROUTER = ("address", "keys", "tls", "port", "both", "program")
_READ_ELSEWHERE = {
    "startup_timeout_s": "the model's server ends its own start, which the router sees",
    "log_config": "a part of StartupConfig.logs",
}
_REFUSED_BY_NAME = {"--listen-when-ready", "--models"}
_READERS = ("router/**/*.py", "server/http/transport/*.py", "startup/logs/*.py", "base/security/*.py")


@pytest.mark.parametrize("flag", SUPPORTED, ids=lambda flag: flag.name)
def test_each_flag_is_used_by_the_router_or_passed_to_the_model_or_refused(flag, tmp_path):
    """A flag that the router reads, and whose value nothing in the router uses, would be ignored."""
    if flag.name in _REFUSED_BY_NAME:
        return
    if flag.role in _OF_THE_ROUTER:
        text = "".join(path.read_text() for pattern in _READERS for path in ROOT.glob(pattern))
        names = {field.rpartition(".")[2] for field in flag.fields} - _READ_ELSEWHERE.keys()
        assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
    if flag.role in (None, "both", "program", "run") and flag.name not in ("--config", "--engine"):
        (tmp_path / "log.json").write_text('{"version": 1}')
        sample = _SAMPLES[flag.shape] if flag.name != "--log-config-file" else (str(tmp_path / "log.json"),)
        sample = (flag.type.choices[0],) if isinstance(flag.type, click.Choice) else sample
        words = ("m", "--restart", "on-failure", flag.name, *sample)
        entry = _only(vllm_router(vllm_options(("m", "--restart", "on-failure")), words))
        is_ours = flag.role == "both" and flag.name.startswith("--http-")
        assert (flag.name in entry.words or bool(entry.env)) is not is_ours, "vLLM has no such limits"


@pytest.mark.parametrize("run", [_embedded, _vllm], ids=["embedded", "vllm"])
async def test_the_router_kills_a_server_no_earlier_than_the_server_may_end(run, tmp_path):
    """The time may be abbreviated or in a file, where vLLM and the embedded engine read it."""
    file = tmp_path / "serve.yaml"
    file.write_text("shutdown-timeout: 100\n")
    for words in (["--shutdown-timeo", "100"], ["--config", str(file)], ["--shutdown-timeout=100"]):
        entry = _only(run(*words) if run is _vllm else run("m", *words))
        server = OwnServer(entry.words, "", {})
        server._has_been_ready = True
        assert server.stop_s == 100 + ERRORS_S, words


def test_the_variable_of_a_flag_is_refused_as_the_flag(monkeypatch):
    monkeypatch.setenv("VCLI_LISTEN_WHEN_READY", "1")
    with pytest.raises(InputError, match="--listen-when-ready does not go with --idle-stop"):
        _vllm()
