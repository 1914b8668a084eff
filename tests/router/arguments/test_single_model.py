"""`serve MODEL --idle-stop` and `--restart`: flags of the router, flags of its model, and refused flags."""

import json
import re

import pytest
import yaml

from router.arguments.single_model import router_of_one, vllm_router
from router.router import RouterOptions
from startup.arguments.errors import InputError
from startup.arguments.serve_command import read_start
from startup.arguments.supported import SUPPORTED
from startup.arguments.table import split_flags
from startup.settings.config import StartupConfig, flags_with_role
from startup.settings.serve_arguments import LauncherLine
from startup.vllm_arguments.options import VllmOptions
from tests.support.peer_vllm import ROOT
from tests.support.vllm_flags import VLLM_NAMES


def _embedded(*arguments: str) -> RouterOptions:
    arguments = (*arguments, "--idle-stop", "10m")
    read = read_start(LauncherLine(arguments))
    assert isinstance(read.start, StartupConfig)
    return router_of_one(read.read, read.start)


def _vllm(*arguments: str) -> RouterOptions:
    arguments = ("m", "--idle-stop", "10m", *arguments)
    read = read_start(LauncherLine((*arguments, "--engine", "vllm")))
    assert isinstance(read.start, VllmOptions)
    return router_of_one(read.read, read.start)


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
    arguments = [*map(str, value)] if name == "--api-key" else [json.dumps(value)] if is_list else [str(value)]
    by_file, by_flag = _vllm("--config", str(file)), _vllm(name, *([] if value is True else arguments))
    assert by_file.config == by_flag.config != _vllm().config
    assert by_file.model_has_keys == (name == "--api-key"), "vLLM asks for them, too"


@pytest.mark.parametrize("name", _REFUSED)
def test_a_setting_that_the_port_would_not_have_ends_the_start(name, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(f"{name.removeprefix('--')}: {_REFUSED[name]}\n")
    with pytest.raises(InputError, match=f"--idle-stop does not go with .*{name.removeprefix('--')}"):
        _vllm("--config", str(file))


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [((), ("embedded",)), (("--standby", "off"), ()), (("--trust-remote-code",), ())],
    ids=str,
)
def test_a_standby_is_kept_unless_it_cannot_be_used(arguments, kinds, monkeypatch):
    monkeypatch.setenv("VCLI_STANDBY", "auto")
    assert _embedded("m", *arguments).find_template_kinds() == kinds


def test_a_model_on_disk_is_found_for_the_standby(tiny_llama):
    options = _embedded(str(tiny_llama))
    assert options.find_model(str(options.only)) == str(tiny_llama)
    assert _embedded("nowhere").find_model("nowhere") is None


_READ_ELSEWHERE = {
    "startup_timeout_s": "the model's server ends its own start, which the router sees",
    "log_config": "a part of StartupConfig.logs",
}
_READERS = ("router/**/*.py", "server/http/t*/*.py", "startup/logs/*.py", "base/security/*.py", "base/access_log.py")


@pytest.mark.parametrize("flag", SUPPORTED, ids=lambda flag: flag.name)
def test_each_flag_is_used_by_the_router_or_passed_to_the_model_or_refused(flag, tmp_path):
    """A flag that the router reads, and whose value nothing in the router uses, would be ignored."""
    if flag.name in {"--listen-when-ready", "--models"}:
        return
    if flag.role in ("address", "keys", "tls", "port", "both", "program"):
        text = "".join(path.read_text() for pattern in _READERS for path in ROOT.glob(pattern))
        names = {field.rpartition(".")[2] for field in flag.fields} - _READ_ELSEWHERE.keys()
        assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
    if flag.role in (None, "both", "program", "run") and flag.name not in ("--config", "--engine"):
        (tmp_path / "log.json").write_text('{"version": 1}')
        sample = [str(tmp_path / "log.json") if flag.name == "--log-config-file" else (flag.choices or "1")[0]]
        arguments = ("m", "--restart", "on-failure", flag.name, *(sample if flag.nargs else ()))
        start = read_start(LauncherLine(("m", "--restart", "on-failure", "--engine", "vllm"))).start
        assert isinstance(start, VllmOptions)
        options = vllm_router(start, [*split_flags(arguments)])
        (entry,) = options.entries.values()
        assert (options.only, entry.preload) == (entry.name, True)
        is_ours = flag.role == "both" and flag.name.startswith("--http-")
        assert (flag.name in entry.arguments or bool(entry.env)) is not is_ours, "vLLM has no such limits"
