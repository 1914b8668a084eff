"""The budget of a prefetch: missing pages that fit into memory, and nothing if that helps too little."""

import pytest

from startup.prefetch.messages import Job
from startup.prefetch.survey import RESERVE_BYTES, Block, Survey, decide

MB = 10**6


def job(*, room_mb: int | None, is_forced: bool = False) -> Job:
    """With so much memory besides the reserve."""
    return Job(
        num_threads=8,
        block_bytes=16 << 20,
        memory_bytes=None if room_mb is None else RESERVE_BYTES + room_mb * MB,
        is_forced=is_forced,
        progress_interval_s=None,
        parent_pid=1,
        begin_ns=0,
    )


def survey(*, missing_mb: int, resident_mb: int = 0) -> Survey:
    blocks = tuple(Block("f", i * 10 * MB, 10 * MB, 10 * MB) for i in range(missing_mb // 10))
    return Survey(1, (missing_mb + resident_mb) * MB, resident_mb * MB, 0, blocks, ())


def test_everything_is_read_if_memory_suffices() -> None:
    decision = decide(survey(missing_mb=500), job(room_mb=500))
    assert (decision.is_off, decision.reason) == (False, None)
    assert decision.survey.due_bytes == 500 * MB


def test_resident_pages_reduce_the_available_memory() -> None:
    decision = decide(survey(missing_mb=500, resident_mb=200), job(room_mb=500))
    assert decision.survey.due_bytes == 300 * MB
    assert decision.survey.blocks[0].offset == 0
    assert "300 MB of 500 MB fit" in str(decision.reason)


def test_auto_is_off_if_less_than_half_fits_and_on_reads_it() -> None:
    assert decide(survey(missing_mb=500), job(room_mb=200)).is_off
    decision = decide(survey(missing_mb=500), job(room_mb=200, is_forced=True))
    assert not decision.is_off
    assert decision.survey.due_bytes == 200 * MB


def test_on_reads_what_fits_however_little_that_is() -> None:
    decision = decide(survey(missing_mb=500), job(room_mb=20, is_forced=True))
    assert not decision.is_off
    assert decision.survey.due_bytes == 20 * MB


@pytest.mark.parametrize("is_forced", [False, True])
def test_too_little_memory_is_off_in_every_mode(is_forced: bool) -> None:
    decision = decide(survey(missing_mb=500), job(room_mb=-100, is_forced=is_forced))
    assert decision.is_off
    assert "0 MB of 500 MB fit" in str(decision.reason)


def test_the_last_percent_is_read_only_with_mode_on() -> None:
    nearly_all = survey(missing_mb=10, resident_mb=9990)
    assert decide(nearly_all, job(room_mb=19_000)).reason == "99.9% of the bytes are resident"
    assert not decide(nearly_all, job(room_mb=19_000, is_forced=True)).is_off


def test_no_readable_file_is_off() -> None:
    decision = decide(Survey(0, 0, 0, 0, (), ("f: gone",)), job(room_mb=None))
    assert decision.reason == "none of the files can be read"


def test_this_machines_memory_is_the_default() -> None:
    huge = Block("f", 0, 1 << 60, 1 << 60)
    assert "fit" in str(decide(Survey(1, huge.length, 0, 0, (huge,), ()), job(room_mb=None)).reason)


def test_a_job_is_read_from_its_argument_unchanged() -> None:
    sent = job(room_mb=None)._replace(progress_interval_s=0.5)
    assert Job.from_argument(sent.to_argument()) == sent
