"""A standby keeps the weights of its models in the page cache."""

from unittest.mock import Mock

import pytest

from startup.files.prefetch.messages import PrefetchReport
from startup.files.prefetch.process import PrefetchHandle
from startup.standby import standby
from startup.standby.standby import _ModelPages
from tests.support.llamas import save_tiny_llama


@pytest.mark.parametrize(("unknown_bytes", "num_prefetches"), [(0, 3), (1000, 1)])
def test_weights_are_read_again_if_it_is_known_what_is_missing(unknown_bytes, num_prefetches, tmp_path, monkeypatch):
    start = Mock(return_value=PrefetchHandle(None, PrefetchReport("done", unknown_bytes=unknown_bytes)))
    monkeypatch.setattr(standby, "start_prefetch", start)
    monkeypatch.setattr(standby, "_PAGES_CHECK_S", 0.0)
    with _ModelPages((str(save_tiny_llama(tmp_path)),)) as pages:
        for _ in range(3):
            pages.keep()
    assert [call.args[0][-1].name for call in start.call_args_list] == ["model.safetensors"] * num_prefetches
