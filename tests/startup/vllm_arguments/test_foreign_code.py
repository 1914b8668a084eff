"""Which flags and plugins bring code of others into vLLM's processes."""

import zipfile
from itertools import chain

import pytest

from startup.settings.flag import Flag
from startup.vllm_arguments.foreign_code import foreign_code
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import Plugin, VllmRecord, read_plugins

_RECORDED = VllmRecord(
    flags=(
        *(Flag((name,), "text", 1) for name in ("--worker-cls", "--kv-transfer-config")),
        Flag(("--trust-remote-code",), "switch", 0),
    )
)


@pytest.mark.parametrize("record", [VllmRecord(), _RECORDED], ids=["first start", "later start"])
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("", ()),
        ("--worker-cls own.Worker", ("--worker-cls",)),
        ("--worker_cls=own.Worker", ("--worker-cls",)),
        ("--worker-c own.Worker", ("--worker-cls",)),
        ("--worker-cls auto", ()),
        ("--worker-cls vllm.v1.worker.gpu_worker.Worker", ()),
        ('--kv-transfer-config {"kv_connector":"NixlConnector"}', ()),
        ('--kv-transfer-config {"kv_connector_module_path":"own.connector"}', ("--kv-transfer-config",)),
        ("--kv-transfer-config.kv_connector_module_path own.connector", ("--kv-transfer-config",)),
    ],
)
def test_a_flag_names_code_of_others(arguments, names, record):
    assert foreign_code(VllmLine.of(("m", *arguments.split()), record)) == names


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("--worker-extension-cls own.Worker", "--worker-extension-cls"),
        ("--scheduler-cls own.scheduler.Scheduler", "--scheduler-cls"),
        ("--logits-processors own:Processor", "--logits-processors"),
        ("--middleware own.middleware", "--middleware"),
        ("--distributed-executor-backend own.Executor", "--distributed-executor-backend"),
        ("--tool-parser-plugin parser.py", "--tool-parser-plugin"),
        ("--reasoning-parser-plugin parser.py", "--reasoning-parser-plugin"),
        ("--io-processor-plugin own", "--io-processor-plugin"),
        ('--ec-transfer-config {"ec_connector_module_path":"own"}', "--ec-transfer-config"),
        ('--speculative-config {"method":"custom_class","model":"own.Proposer"}', "--speculative-config"),
        ('--compilation-config {"backend":"own.backend"}', "--compilation-config"),
    ],
)
def test_each_flag_of_code_is_known_in_a_first_start(arguments, name):
    assert foreign_code(VllmLine.of(("m", *arguments.split()), VllmRecord())) == (name,)


@pytest.mark.parametrize("record", [VllmRecord(), _RECORDED], ids=["first start", "later start"])
@pytest.mark.parametrize(
    ("flags", "code", "names"),
    [
        (["--trust-remote-code"], "import transformers\n", ()),
        (["--trust-remote-code"], "from vllm.model_executor.layers import layernorm\n", ("configuration_own.py",)),
        (["--trust-rem"], "import vllm\n", ("configuration_own.py",)),
        ([], "import vllm\n", ()),
        (["--trust-remote-code"], "#" * (1 << 20) + "\nimport vllm\n", ("configuration_own.py",)),
    ],
    ids=["other code", "names vLLM", "abbreviated flag", "not trusted", "long file"],
)
def test_a_models_code_counts_if_it_is_trusted_and_names_vllm(flags, code, names, record, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "configuration_own.py").write_text(code)
    (tmp_path / "folder.py").mkdir()
    assert foreign_code(VllmLine.of((str(tmp_path), *flags), record)) == names


def test_the_code_of_a_model_that_is_not_on_disk_may_name_vllm():
    line = VllmLine.of(("nobody/has-this", "--trust-remote-code"), VllmRecord())
    assert foreign_code(line) == ("--trust-remote-code",)


@pytest.mark.parametrize(
    "arguments",
    ["--distributed-executor-backend mp", '--compilation-config {"backend":"inductor"}', "--speculative-config {}"],
)
def test_vllms_own_values_name_no_code(arguments):
    assert foreign_code(VllmLine.of(("m", *arguments.split()), VllmRecord())) == ()


@pytest.mark.parametrize(
    ("group", "allowed", "is_loaded"),
    [
        ("vllm.general_plugins", None, True),
        ("vllm.general_plugins", "other,own", True),
        ("vllm.general_plugins", "other", False),
        ("vllm.general_plugins", "", False),
        ("vllm.platform_plugins", "other", False),
        ("vllm.logits_processors", "other", True),
    ],
)
def test_plugins_that_vllm_loads_are_code_of_others(group, allowed, is_loaded, monkeypatch):
    if allowed is not None:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    line = VllmLine.of(("m",), VllmRecord(installed_plugins=(Plugin(group, "own", "own-1.0.dist-info"),)))
    assert foreign_code(line) == (("plugin own",) if is_loaded else ())


def test_plugins_are_found_wherever_packages_may_be(tmp_path, monkeypatch):
    entry = "[vllm.general_plugins]\n{} = own:install\n"
    for name in ("wheel-1.0.dist-info", "development.egg-info", "egg.egg/EGG-INFO"):
        folder = tmp_path / f"path of {name}" / name
        folder.mkdir(parents=True)
        (folder / "entry_points.txt").write_text(entry.format(name[:3]))
        monkeypatch.syspath_prepend(str(folder.parent))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("archive-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: archive\nVersion: 1.0\n")
        archive.writestr("archive-1.0.dist-info/entry_points.txt", entry.format("archive"))
    monkeypatch.syspath_prepend(str(tmp_path / "archive.zip"))
    found = {plugin.name for plugin in chain.from_iterable(read_plugins().values())}
    assert {"whe", "dev", "egg", "archive"} <= found
