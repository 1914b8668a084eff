"""Every fault of a broken model folder is reported, as text and JSON, without reading the weights."""

import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Final

import pytest

from startup.session.preflight.all_checks import PreflightOptions, run_preflight
from startup.session.preflight.report import PreflightReport
from tests.startup.session.preflight.conftest import ROOMY, ModelFolder
from tests.support.cli import python_output
from tests.support.page_cache import counting_bytes_read

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"


def messages(report: PreflightReport, check: str) -> list[str]:
    return [finding.message for finding in report.errors if finding.check == check]


def test_a_complete_folder_has_no_findings(folder, preflight):
    assert {f.severity for f in preflight(folder.path).findings} == {"info"}


def _truncated(number: int, size: int):
    """Truncates a shard. A negative size counts from the end."""

    def damage(folder: ModelFolder) -> None:
        path = folder.shards[number]
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)

    return damage


def _written(name: str, content: bytes):
    return lambda folder: (folder.path / name).write_bytes(content)


def _with_header(change: Callable[[bytes], bytes]):
    """Changes the header of the first shard."""

    def damage(folder: ModelFolder) -> None:
        raw = folder.shards[0].read_bytes()
        end = 8 + struct.unpack("<Q", raw[:8])[0]
        header = change(raw[8:end])
        folder.shards[0].write_bytes(struct.pack("<Q", len(header)) + header + raw[end:])

    return damage


def _with_tensor(entry: object):
    return _with_header(lambda _: json.dumps({"layer0.a": entry}).encode())


def _with_torch_file(content: bytes):
    def damage(folder: ModelFolder) -> None:
        remove_safetensors(folder)
        (folder.path / "pytorch_model.bin").write_bytes(content)

    return damage


def _torch_file() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 1000)
    return file.getvalue()


def remove_safetensors(folder: ModelFolder) -> None:
    for path in (folder.index, *folder.shards):
        path.unlink()


_FIRST, _SECOND, _THIRD = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
_BROKEN: Final = b'{\n  "a": 1,\n  "b": }'
FAULTS = [
    (_truncated(1, -100), "weights", f"{_SECOND} … calls for {{size}} bytes, the file has {{cut}}"),
    (_truncated(0, 40), "weights", "is truncated: the header alone needs"),
    (
        lambda folder: folder.shards[0].write_bytes(folder.shards[0].read_bytes() + b"more"),
        "weights",
        "is too long: its header calls for {size} bytes, the file has {more}",
    ),
    (_written(_FIRST, b"<html>not found</html>"), "weights", "is not a safetensors file"),
    (_with_header(lambda header: b"]" + header[1:]), "weights", "has a corrupt header"),
    *(
        (_with_tensor(entry), "weights", "has a corrupt header: tensor 'layer0.a'")
        for entry in (
            {"dtype": "BF16"},
            {"dtype": "BF16", "shape": [1], "data_offsets": [2, 0]},
            {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]},
            "x",
        )
    ),
    (
        lambda folder: (folder.shards[0].unlink(), folder.shards[2].unlink()),
        "shards",
        f"lacks 2 of 3 shards … {_FIRST} … {_THIRD}",
    ),
    (lambda folder: folder.index.unlink(), "index", "3 shards but no index"),
    (
        lambda folder: folder.write_index(dict.fromkeys(("layer0.a", "layer1.a"), _SECOND)),
        "index",
        f"lists 1 tensors that {_SECOND} does not have (layer0.a)",
    ),
    (_written("model.safetensors.index.json", b"{}"), "index", "has no weight_map"),
    (_written(_FIRST, POINTER), "lfs", "4976698672 bytes … git lfs pull"),
    (_written("tokenizer.json", POINTER), "json", "tokenizer.json is a Git LFS pointer"),
    (_written("tokenizer.model", POINTER), "lfs", "tokenizer.model is a Git LFS pointer"),
    *(
        (_written(name, _BROKEN), "json", f"{name} is not JSON … line 3")
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
    ),
    (_written("tokenizer.json", b'{"a": "' + b"x" * 70_000 + b'\xff"}'), "json", "is not text"),
    (_written("tokenizer.json", b'{"a": "x"'), "json", "line 1"),
    (_written("tokenizer.json", b'[{"a": 1}]'), "json", "is not a JSON object"),
    (_written("tokenizer.json", b'{"a": {"b": tru}}'), "json", "line 1"),
    (_written("tokenizer.json", b'{"model": "' + b"x" * 17_000_000), "json", "tokenizer.json is truncated"),
    *(
        (_written("config.json", content), "config", "config.json is not")
        for content in (b"", b"[]", b"\xff\xfe", b'{"model_type": ')
    ),
    (_written("config.json", b'{"hidden_size": 8}'), "config", "names neither model_type nor architectures"),
    *(
        (
            _written("config.json", b'{"model_type": "llama", "num_hidden_layers": 2, "%b": %b}' % (name, value)),
            "config",
            f"{name.decode()}, but {value.decode()}",
        )
        for name, value in ((b"max_position_embeddings", b"true"), (b"head_dim", b'"64"'), (b"n_ctx", b"2048.5"))
    ),
    *((_with_torch_file(_torch_file()[:-num_missing]), "weights", "is truncated") for num_missing in (1, 100, 5000)),
    (_with_torch_file(b"<html>"), "weights", "is not a PyTorch checkpoint: it has 6 bytes"),
]


@pytest.mark.parametrize(("damage", "check", "text"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_fault_is_reported_once_with_its_value(folder, preflight, damage, check, text):
    size = folder.shards[0].stat().st_size
    damage(folder)
    (message,) = messages(preflight(folder.path), check)
    parts = text.format(size=size, cut=size - 100, more=size + 4).split(" … ")
    assert [part for part in parts if part not in message] == [], message


def test_an_empty_folder_lacks_config_weights_and_tokenizer(tmp_path, preflight):
    assert {finding.check for finding in preflight(tmp_path).errors} == {"config", "no_weights", "tokenizer"}


def test_a_tokenizer_that_only_vllm_reads_needs_it(folder, preflight):
    (folder.path / "tokenizer.json").rename(folder.path / "tekken.json")
    (message,) = messages(preflight(folder.path), "tokenizer")
    assert "only tekken.json" in message
    assert "--engine vllm" in message
    (folder.path / "tekken.json").rename(folder.path / "tokenizer.json")
    (folder.path / "config.json").write_text("{oops")
    assert messages(preflight(folder.path), "tokenizer") == [], "a broken file is reported once"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_shard_is_reported_with_the_reason(folder, preflight):
    folder.shards[0].chmod(0)
    (message,) = messages(preflight(folder.path), "weights")
    assert "cannot be read: Permission denied: give this user the right to read it" in message


@pytest.mark.parametrize("content", [b'{"a": NaN}', "{}".encode("utf-16"), b' {"a": 1}', '{"a": "é🙂"}'.encode()])
def test_unusual_json_is_no_fault(folder, preflight, content):
    (folder.path / "tokenizer_config.json").write_bytes(content)
    assert messages(preflight(folder.path), "json") == []


def test_a_real_torch_file_has_no_errors(folder, preflight):
    import torch

    remove_safetensors(folder)
    torch.save({"a": torch.zeros(100_000)}, folder.path / "pytorch_model.bin")
    assert preflight(folder.path).errors == ()


def test_weights_of_a_terabyte_are_not_read(folder, preflight):
    text = json.dumps({"huge": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}).encode()
    remove_safetensors(folder)
    path = folder.path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + (1 << 40))
    with counting_bytes_read() as read:
        report = preflight(folder.path)
    assert not messages(report, "weights")
    assert read.num_bytes < 64 << 20


BUDGET = """
import sys
from vllm_cli.commands.serve import serve
serve.main([sys.argv[1], "--engine", "embedded", "--preflight-only", "--port", "0"], standalone_mode=False)
heavy = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "huggingface_hub", "urllib.request", "ssl"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


@pytest.mark.thorough
def test_preflight_of_a_local_model_imports_nothing_heavy(model_path):
    assert "for the weights" in python_output(BUDGET, model_path)


def test_json_contains_findings_and_the_duration_of_each_group(preflight):
    content = json.loads(preflight("/no/such/model").to_json())
    assert content["schema"] == 1
    assert content["ok"] is False
    assert content["findings"][0]["check"] == "model"
    assert content["findings"][0]["severity"] == "error"
    assert {"environment", "checkpoint", "memory"} <= {check["name"] for check in content["checks"]}


def test_text_has_a_line_per_finding_errors_first_and_a_summary(preflight, monkeypatch):
    monkeypatch.setenv("VCLI_NO_SUCH_THING", "1")
    lines = preflight("/no/such/model").to_text().splitlines()
    assert [line.split()[0] for line in lines] == ["error", "warning", "Preflight:"]
    assert re.fullmatch(r"Preflight: 1 error, 1 warning after \d+\.\d\d s", lines[-1])


def test_an_error_inside_a_check_is_no_passed_check(model_path, make_config):
    options = PreflightOptions(shm=42.5, memory=ROOMY)  # type: ignore[arg-type]
    (finding,) = run_preflight(make_config(model_path), options=options).unchecked
    assert "this check could not be done: TypeError" in finding.message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "bf16"}, "dtype 'bf16' is no type of torch: write bfloat16"),
        ({"dtype": "FP16"}, "dtype 'FP16' is no type of torch: write float16"),
        ({"dtype": "torch.float32"}, "dtype 'torch.float32' is no type of torch: write float32"),
        ({"dtype": "auto"}, "dtype 'auto' is no type of torch: write bfloat16 or float32"),
        ({"dtype": None, "torch_dtype": "bf16"}, "torch_dtype 'bf16' is no type of torch"),
        ({"dtype": "bfloat16", "torch_dtype": "bf16"}, None),
        ({"dtype": "float8_e4m3fn"}, None),
        ({"model_type": "llamo"}, "does not know the model_type 'llamo' (did you mean 'llama'?)"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, None),
    ],
    ids=repr,
)
def test_settings_that_transformers_cannot_read(folder, preflight, changes, told):
    path = folder.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    found = [finding.message for finding in preflight(folder.path).errors if finding.check == "config"]
    assert [told in message for message in found] == ([True] if told else [])


@pytest.mark.parametrize(
    ("kind", "severity"),
    [
        ("TokenizersBackend", "error"),
        ("PreTrainedTokenizerFast", "error"),
        ("GPT2Tokenizer", "warning"),
        (None, "warning"),
        ("ByT5Tokenizer", None),
    ],
)
def test_settings_of_a_tokenizer_alone_have_no_tokens(folder, preflight, kind, severity):
    (folder.path / "tokenizer.json").unlink()
    (folder.path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    found = [finding for finding in preflight(folder.path).findings if finding.check == "tokenizer"]
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert all("no file with the tokens" in finding.message for finding in found)
