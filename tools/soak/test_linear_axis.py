import pytest

from tools.soak.linear_axis import LinearAxis


@pytest.mark.parametrize(
    ("least", "greatest", "bounds"),
    [(0, 97, (0, 100)), (0, 100, (0, 120)), (-3.2, 4.1, (-4, 6)), (5, 5, (5, 5.2)), (0, 0, (0, 0.2))],
)
def test_the_axis_holds_both_figures_between_round_numbers(least, greatest, bounds):
    axis = LinearAxis.around(least, greatest, top=0, bottom=100)
    assert (axis.least, axis.greatest) == (pytest.approx(bounds[0]), pytest.approx(bounds[1]))
    assert 0 <= axis.y(greatest) <= axis.y(least) <= 100


def test_the_greater_figure_is_higher_and_each_step_is_labelled():
    axis = LinearAxis.around(0, 47, top=20, bottom=120)
    assert axis.y(axis.least) == pytest.approx(120)
    assert axis.y(axis.greatest) == pytest.approx(20)
    drawn = axis.draw(0, 10, "MiB")
    for label in ("0 MiB", "10 MiB", "50 MiB"):
        assert f">{label}<" in drawn
    assert drawn.count("<line") == 6
