"""The logarithmic axis of a chart."""

import pytest

from vllm_cli.chart_axes import LogAxis

AXIS = LogAxis.around(0.1, 300, top=0, bottom=400)


@pytest.mark.parametrize(("figure", "y"), [(0.1, 400), (1, 300), (10, 200), (1000, 0)])
def test_powers_of_ten_have_equal_distances(figure, y):
    assert AXIS.y(figure) == pytest.approx(y)


@pytest.mark.parametrize("figure", [0, 0.001])
def test_figures_below_the_axis_lie_on_its_lower_end(figure):
    assert AXIS.y(figure) == pytest.approx(400)


def test_lines_are_drawn_at_every_power_of_ten():
    drawn = AXIS.draw(50, 800, "ms")
    assert drawn.count("<line") == 5
    assert all(f">{label} ms<" in drawn for label in ("0.1", "1", "10", "100", "1000"))


def test_an_axis_for_one_small_figure_has_two_lines():
    assert LogAxis.around(0.1, 0.1, top=0, bottom=10).draw(0, 1, "ms").count("<line") == 2
