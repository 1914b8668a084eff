"""Pauses before something that fails is tried again."""

from startup.processes.back_off import BackOff


def test_what_fails_again_and_again_pauses_for_longer():
    back_off = BackOff()
    assert [back_off.take_s(9.9) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_what_has_worked_for_a_while_pauses_as_at_first():
    back_off = BackOff()
    assert [back_off.take_s(), back_off.take_s(), back_off.take_s(10.0), back_off.take_s()] == [1, 2, 1, 2]
