import numpy as np
import pytest

from mm_sop.report.evaluation_charts import copies_chart, spectrum_chart, taps_chart, transfer_chart
from mm_sop.report.style import DARK, LIGHT


@pytest.mark.parametrize('theme', [LIGHT, DARK])
def test_spectrum_has_fractions(theme):
    (axes,) = spectrum_chart(dict(encoding=[6.0, 3.0, 1.0], embedding=[1.0, 0.0]), theme).axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[0.6, 0.3, 0.1], [1, 0]]
    assert axes.get_yscale() == 'log' and axes.get_ylim()[0] >= 1e-6


def test_a_panel_for_each_score():
    layers = dict(encoding=(0.5, 0.1), embedding=(0.25, 0.0))
    figure = taps_chart(dict(NMI={'seen class': layers}, ARI={'seen class': layers, 'test class': layers}), LIGHT)
    assert [axes.get_title(loc='left') or axes.get_title() for axes in figure.axes] == ['NMI', 'ARI']
    assert [len(axes.containers) for axes in figure.axes] == [1, 2]
    np.testing.assert_allclose(figure.axes[0].containers[0].lines[0].get_ydata(), [0.5, 0.25])


def test_a_row_for_each_set():
    accuracies = {kind: {'dtd test': (0.5, 0.1), 'cifar10 test': (0.75, 0.05)} for kind in ('knn', 'linear')}
    (axes,) = transfer_chart(accuracies, LIGHT).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ['dtd test', 'cifar10 test']
    assert [container.lines[0].get_xdata().tolist() for container in axes.containers] == [[50, 75]] * 2


def test_copies_chart_has_a_panel_for_each_series():
    precisions = {'strong': 0.4, 'jpegqual/20': 1.0, 'jpegqual/3': 0.9, 'crops/50': 0.7}
    figure = copies_chart(precisions, LIGHT)
    assert [axes.get_xlabel() for axes in figure.axes] == ['JPEG quality', 'area cropped away in %']
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[3, 90], [20, 100]]
    assert figure.axes[1].lines[-1].get_ydata()[0] == pytest.approx(40)
    assert len(copies_chart(dict(strong=0.4), LIGHT).axes) == 1
