"""Growth from pause to pause fails a soak; a first pause with less, and a little more memory, do not."""

import os

import psutil
import pytest

from tests.soak.held import Held, find_growth, measure

MIB = 1 << 20
REST = Held(200 * MIB, 40, 12, 3)


@pytest.mark.parametrize(
    ("last", "grown"),
    [
        (REST, []),
        (REST._replace(memory_bytes=203 * MIB - 1), []),
        (REST._replace(memory_bytes=204 * MIB), ["memory_bytes"]),
        (REST._replace(files=41), ["files"]),
        (REST._replace(threads=13, processes=4), ["threads", "processes"]),
    ],
    ids=["equal", "one percent", "memory", "a file", "a thread and a process"],
)
def test_more_than_in_every_earlier_pause_is_growth(last, grown):
    filling = Held(150 * MIB, 30, 8, 3)
    found = find_growth([filling, REST, REST._replace(memory_bytes=190 * MIB), last])
    assert [line.partition(":")[0] for line in found] == grown


def test_the_resources_of_a_process_are_counted():
    this = psutil.Process()
    before = measure([this])
    descriptor = os.open("/", os.O_RDONLY)
    try:
        assert measure([this]).files == before.files + 1
    finally:
        os.close(descriptor)
    assert before.memory_bytes > MIB
    assert (before.threads >= 1, before.processes) == (True, 1)
