import io
import itertools

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mm_sop.report.charts import (
    CHART,
    comparison_chart,
    curves_chart,
    knn_chart,
    seeds_chart,
    spread_apart,
    spread_chart,
    time_chart,
)
from mm_sop.report.style import DARK, LIGHT, chart_style, render


def score(iteration, accuracy, error=0.01):
    return dict(iter=iteration, accuracy=accuracy, standard_error=error)


@pytest.mark.parametrize('seed', range(20))
def test_spread_labels(seed):
    generator = np.random.default_rng(seed)
    levels = sorted(generator.normal(0, 2, 6))
    placed = spread_apart(levels, 0.8)
    assert all(b - a >= 0.8 - 1e-9 for a, b in itertools.pairwise(placed))
    assert np.mean(placed) == pytest.approx(np.mean(levels))
    assert np.abs(np.array(placed) - levels).max() <= 0.8 * 5 / 2


def test_labels_with_room_stay():
    assert spread_apart([0.0, 1.0, 5.0], 1.0) == [0.0, 1.0, 5.0]
    assert spread_apart([1.0, 1.0, 1.0], 2.0) == [-1.0, 1.0, 3.0]
    assert spread_apart([], 1.0) == []


def test_knn_chart_shows_percent_with_errors():
    curve = [score(0, 0.2, 0.02), score(100, 0.5, 0.04)]
    with chart_style(LIGHT):
        axes = knn_chart('seen class', curve, dict(pixels=score(None, 0.3, 0.03)), LIGHT).axes[0]
    teacher, pixels = axes.lines
    assert teacher.get_xydata().tolist() == [[0, 20], [100, 50]]
    assert list(pixels.get_ydata()) == [30, 30]
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((18, 54))
    assert [text.get_text() for text in axes.texts] == ['pixels 30.0', 'trained 50.0']
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('iteration', 'k-NN accuracy in %')


def test_curves_have_names_only_where_there_are_several():
    one = curves_chart(dict(lr=([1, 2], [3, 4])), 'Learning rate', 'rate', LIGHT).axes[0]
    assert one.get_legend() is None and one.get_title(loc='left') + one.get_title() == 'Learning rate'
    limits = dict(maximum=([1, 2], [5, 5]))
    two = curves_chart(dict(entropy=([1, 2], [3, 4])), 'Entropy', 'nats', LIGHT, limits).axes[0]
    assert [text.get_text() for text in two.get_legend().get_texts()] == ['entropy', 'maximum']
    assert two.lines[1].get_color() == LIGHT.quiet


def test_bar_adds_up_to_the_whole():
    axes = time_chart(dict(training=30.0, waiting=10.0, evaluation=10.0), DARK).axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0, 60), (60, 20), (80, 20)]


def test_rendering_is_transparent_and_leaves_defaults_alone():
    before = dict(matplotlib.rcParams)
    charts = [
        Image.open(io.BytesIO(render(lambda theme: curves_chart(dict(a=([1], [2])), 'A', 'b', theme), theme)))
        for theme in (LIGHT, DARK)
    ]
    assert dict(matplotlib.rcParams) == before
    for chart in charts:
        assert chart.size == pytest.approx((200 * CHART[0], 200 * CHART[1])) and chart.getpixel((0, 0))[3] == 0
    assert charts[0].tobytes() != charts[1].tobytes()


def test_images_for_documents_are_white():
    image = Image.open(io.BytesIO(render(lambda theme: time_chart(dict(training=1.0), theme), LIGHT, False)))
    assert image.convert('RGBA').getpixel((0, 0)) == (255, 255, 255, 255)


def summary(*values):
    return dict(mean=sum(values) / len(values), deviation=None, values=list(values))


def test_comparison_shows_every_seed_and_the_mean():
    accuracies = {name: dict(seen_class_k20=summary(0.2, 0.4)) for name in ('SOP', 'ReSA')}
    with chart_style(LIGHT):
        figure = comparison_chart(accuracies, {'raw pixels': dict(seen_class_k20=summary(0.1))}, LIGHT)
    (axes,) = figure.axes
    points = [list(line.get_xdata()) for line in axes.lines]
    assert points == [pytest.approx(values) for values in ([20, 40], [30], [20, 40], [30], [10, 10])]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['SOP', 'ReSA']
    assert axes.get_title(loc='left') == 'seen class, k = 20'


def test_seeds_have_a_line_each_and_one_name_together():
    curves = dict(seen_class_k20={'trained': [([0, 5], [0.1, 0.3]), ([0, 5], [0.2, 0.4])], 'control': [([0], [0.1])]})
    with chart_style(LIGHT):
        figure = seeds_chart(curves, dict(seen_class_k20={'raw pixels': 0.25}), LIGHT)
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines[:3]] == [[10, 30], [20, 40], [10]]
    assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['trained', 'control', 'raw pixels']


def test_spread_chart_has_a_mean_and_a_band_of_one_std():
    runs = [([10, 20], [1.0, 2.0]), ([10, 20], [3.0, 8.0])]
    curves = {'box AP': dict(scratch=runs, sop=[([10, 20], [5.0, 6.0])]), 'mIoU': dict(scratch=runs[:1])}
    with chart_style(LIGHT):
        figure = spread_chart(curves, '%', LIGHT, columns=2)
    boxes, segments = figure.axes
    assert [list(line.get_ydata()) for line in boxes.lines] == [[2, 5], [5, 6]]
    band = boxes.collections[0].get_paths()[0].vertices
    heights = {x: np.ptp(band[band[:, 0] == x, 1]) for x in (10, 20)}
    assert heights == pytest.approx({10: 2 * 2**0.5, 20: 2 * 18**0.5})
    assert len(segments.lines) == 1 and segments.get_title(loc='left') == 'mIoU'
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['scratch', 'sop']


def test_spread_chart_leaves_surplus_panels_empty():
    curves = {name: dict(scratch=[([1], [2.0])]) for name in 'abc'}
    with chart_style(LIGHT):
        figure = spread_chart(curves, '%', LIGHT, columns=2)
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]
