"""prompt_embeds: accepted files, errors, and hostile files."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pybase64
import pytest
import torch

from base.errors import RequestError
from server.terms.types import TensorData
from server.text.renderers.prompt_embeds import EmbedsLimits, safe_load_prompt_embeds
from tests.support.embeds_payloads import saved

LIMITS = EmbedsLimits(max_model_len=64, width=16, dtype="float32")
NORMAL = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))


def load(payload: bytes, limits: EmbedsLimits = LIMITS, **options: Any) -> torch.Tensor:
    return to_torch(safe_load_prompt_embeds(pybase64.b64encode(payload), limits, **options))


def to_torch(data: TensorData) -> torch.Tensor:
    return torch.frombuffer(bytearray(data.data), dtype=getattr(torch, data.dtype)).reshape(data.shape)


def rejection(payload: bytes, limits: EmbedsLimits = LIMITS) -> str:
    """The error message for a payload. Checks that it is rejected with a RequestError about this field."""
    with pytest.raises(RequestError) as caught:
        load(payload, limits)
    assert caught.value.param == "prompt_embeds"
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize("target", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("source", ("float16", "bfloat16", "float32", "float64"))
def test_numbers_are_cast_as_by_torch(source, target):
    tiny, large = NORMAL * 1e-6, NORMAL * 1e4
    rows = torch.cat([NORMAL, tiny, large, torch.arange(16.0)[None] / 3]).to(getattr(torch, source))
    expected = rows.to(getattr(torch, target))
    assert torch.equal(load(saved(rows), EmbedsLimits(64, 16, target)), expected)


def test_rounding_to_bfloat16_equals_torch_s_for_every_kind_of_number():
    bits = np.random.default_rng(0).integers(0, 2**32, 1 << 20, dtype=np.uint32)
    ties = (np.arange(1 << 14, dtype=np.uint32) << np.uint32(16)) + np.uint32(0x8000)
    numbers = torch.from_numpy(np.concatenate([bits, ties]).view(np.float32))
    numbers = numbers[numbers.bfloat16().isfinite()]
    rows = numbers[: len(numbers) // 16 * 16].reshape(-1, 16)
    assert torch.equal(load(saved(rows), EmbedsLimits(1 << 20, 16, "bfloat16")), rows.bfloat16())


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(torch.randn(16, 9).t(), id="transposed"),
        pytest.param(torch.randn(40, 16)[7:20:3], id="slice"),
        pytest.param(torch.randn(1, 16).expand(9, 16), id="expanded"),
        pytest.param(torch.randn(9, 48)[:, ::3], id="columns"),
        pytest.param(torch.randn(1, 9, 16), id="batch of one"),
        pytest.param(torch.nn.Parameter(torch.randn(9, 16)), id="parameter"),
        pytest.param(torch.randn(9, 16, requires_grad=True), id="requires grad"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_tensors_of_any_memory_layout_are_read(rows, protocol):
    expected = rows.detach().reshape(-1, 16).float()
    assert torch.equal(load(saved(rows, pickle_protocol=protocol)), expected)


def test_the_last_rows_are_kept():
    assert torch.equal(load(saved(NORMAL), truncate_to=2), NORMAL[-2:])
    assert torch.equal(load(saved(NORMAL), truncate_to=99), NORMAL)
    many = torch.cat([NORMAL] * 13)
    assert torch.equal(load(saved(many), truncate_to=63), many[2:])


def test_numbers_in_the_model_s_dtype_are_not_copied():
    rows = safe_load_prompt_embeds(pybase64.b64encode(saved(torch.zeros(60, 16))), LIMITS)
    assert not np.frombuffer(rows.data, np.float32).flags.owndata
    assert rows.data.readonly, "it is the decoded payload itself"


def test_base64_may_be_a_string_bytes_or_a_view():
    text = pybase64.b64encode_as_string(saved(NORMAL))
    for embeds in (text, text.encode(), memoryview(b"x" + text.encode())[1:]):
        assert torch.equal(to_torch(safe_load_prompt_embeds(embeds, LIMITS)), NORMAL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("A", "not valid base64"),
        ("AAAA\nAAAA", "not valid base64"),
        ("__--", "not valid base64"),
        ("AAAA", "is no file of torch.save"),
    ],
)
def test_error_for_invalid_base64_or_an_unknown_file_names_the_fault(text, message):
    with pytest.raises(RequestError, match=message) as caught:
        safe_load_prompt_embeds(text, LIMITS)
    assert caught.value.param == "prompt_embeds"


def test_too_much_base64_is_rejected_before_decoding(monkeypatch):
    monkeypatch.setattr(pybase64, "b64decode", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(RequestError, match="Send fewer rows"):
        safe_load_prompt_embeds("A" * (LIMITS.max_base64_chars + 1), LIMITS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(torch.zeros(5, 15), "rows of 15 numbers, but the model's hidden size is 16", id="width"),
        pytest.param(torch.zeros(16), "must be a 2D tensor", id="rank 1"),
        pytest.param(torch.zeros(2, 5, 16), r"got shape [2, 5, 16]", id="rank 3"),
        pytest.param(torch.zeros(()), "must be a 2D tensor", id="rank 0"),
        pytest.param(torch.zeros(0, 16), "has no rows", id="no rows"),
        pytest.param(torch.zeros(5, 16, dtype=torch.int64), "torch.LongStorage", id="int64"),
        pytest.param(torch.zeros(5, 16, dtype=torch.bool), "BoolStorage", id="bool"),
        pytest.param(torch.zeros(5, 16, dtype=torch.float8_e4m3fn), "plain tensor", id="float8"),
        pytest.param(torch.full((5, 16), float("nan")), "NaN or infinity in row 0", id="nan"),
        pytest.param(torch.tensor([[0.0] * 16, [0.0] * 15 + [float("-inf")]]), "in row 1", id="infinity"),
        pytest.param([NORMAL], "plain tensor", id="list"),
        pytest.param({"prompt_embeds": NORMAL}, "plain tensor", id="dict"),
    ],
)
def test_error_for_a_tensor_that_does_not_fit_names_the_fault(rows, message):
    assert message in rejection(saved(rows))


@pytest.mark.parametrize(
    ("number", "target"), [(1e6, "float16"), (3.4e38, "bfloat16"), (1e300, "float32")], ids=["f16", "bf16", "f32"]
)
def test_numbers_that_become_infinite_are_rejected(number, target):
    rows = torch.ones(3, 16, dtype=torch.float64)
    rows[2, 5] = number
    assert f"too large for {target} in row 2" in rejection(saved(rows), EmbedsLimits(64, 16, target))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_tensors_and_the_old_format_of_torch_are_rejected_with_advice():
    for sparse in (NORMAL.to_sparse(), NORMAL.to_sparse_csr()):
        assert "needs `--engine vllm`: send `tensor.to_dense()`" in rejection(saved(sparse))
    assert "before 1.6" in rejection(saved(NORMAL, _use_new_zipfile_serialization=False))


# Hostile files.


class HostileObject:
    """Unpickling this runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch code-was-executed",)


def rewritten(change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file in which `change` has changed entries. None removes an entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(NORMAL))) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return out.getvalue()


def with_pickle(content: bytes) -> bytes:
    return rewritten(lambda name, old: content if name.endswith("data.pkl") else old)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_code_in_a_pickle_does_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    for payload in (
        with_pickle(pickle.dumps(HostileObject(), protocol)),
        saved(HostileObject(), pickle_protocol=max(protocol, 2)),
    ):
        assert "plain tensor" in rejection(payload)
    rejection(pickle.dumps(HostileObject(), protocol))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x02K\x01r\xff\xff\xff\xff.", id="memory far away"),
        pytest.param(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc", id="very long text"),
        pytest.param(b"\x80\x02K\x01" + b"\x85" * 5000 + b".", id="deep"),
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", id="no arguments"),
        pytest.param(
            b"\x80\x02" + b"ctorch._utils\n_rebuild_parameter\nq\x00" + b"h\x00" * 3000 + b")" + b"\x85R" * 3000 + b".",
            id="nested",
        ),
        pytest.param(b"\x80\x02" + b"(" * 16_000 + b"t" * 16_000, id="too long"),
        pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7f.", id="huge number"),
        pytest.param(b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", id="huge array"),
        pytest.param(b"\x80\x02})" + b"q\x00h\x00\x86" * 64 + b"K\x01s.", id="key of endless hash"),
    ],
)
def test_broken_pickles_are_rejected(content):
    tracemalloc.start()
    try:
        rejection(with_pickle(content))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def tensor_pickle(offset: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """The pickle of a tensor over the file's 80 numbers."""

    def ints(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(pickle.dumps(v, 2)[2:-1] for v in values) + b"t"

    text = b"X" + struct.pack("<I", len(key)) + key.encode()
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + text + b"X\x03\x00\x00\x00cpuK\x50tQ"
    rest = pickle.dumps(offset, 2)[2:-1] + ints(size) + ints(stride)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"\x89NtR."


def test_only_the_key_of_the_files_storage_is_accepted():
    assert torch.equal(load(with_pickle(tensor_pickle(0, (5, 16), (16, 1)))), NORMAL)
    for key in ("../../etc/passwd", "1", "", "0/../0", "\0"):
        assert "missing" in rejection(with_pickle(tensor_pickle(0, (5, 16), (16, 1), key)))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        pytest.param(1, (5, 16), (16, 1), id="offset"),
        pytest.param(0, (5, 16), (17, 1), id="stride"),
        pytest.param(79, (5, 16), (-16, 1), id="negative stride"),
        pytest.param(-1, (5, 16), (16, 1), id="negative offset"),
        pytest.param(2**62, (5, 16), (2**62, 1), id="huge numbers"),
        pytest.param(0, (2**40, 2**40), (0, 0), id="larger than memory"),
        pytest.param(0, (1, 16), (10**30, 1), id="a stride that is not used"),
        pytest.param(0, (2**70, 16), (0, 0), id="more than an address"),
    ],
)
def test_a_tensor_cannot_reach_outside_its_storage(offset, size, stride):
    rejection(with_pickle(tensor_pickle(offset, size, stride)))


def test_a_tensor_is_no_storage_of_another_one():
    """A view may repeat its numbers, so that it is longer than its memory."""
    view = tensor_pickle(0, (2**40,), (0,))[2:-1]
    rest = pickle.dumps(0, 2)[2:-1] + b"(K\x05K\x10t(K\x10K\x01t\x89N"
    rejection(with_pickle(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + view + rest + b"tR."))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_bomb_is_not_decompressed(compression):
    bomb = rewritten(lambda name, old: bytes(1 << 20) if "data/0" in name else old, compression)
    assert "compressed" in rejection(bomb, EmbedsLimits(1 << 20, 16, "float32"))


def test_an_archive_of_a_million_entries_is_rejected_without_reading_them():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for i in range(1000):
            file.writestr(str(i), b"")
    assert "more than one tensor" in rejection(out.getvalue(), EmbedsLimits(1 << 20, 16, "float32"))


@pytest.mark.thorough
def test_truncated_files_and_files_with_a_changed_byte_are_harmless():
    payload = saved(NORMAL)
    for end in range(0, len(payload), 7):
        rejection(payload[:end])
    rng = np.random.default_rng(1)
    for _ in range(1500):
        changed = bytearray(payload)
        for place in rng.integers(0, len(payload), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        try:
            assert load(bytes(changed)).shape[1] == 16
        except RequestError as err:
            assert err.param == "prompt_embeds"
