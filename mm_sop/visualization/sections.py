"""Sections of the report."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmengine.config import Config
from torch import nn

from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.evaluation.features import evaluation_mode
from mm_sop.evaluation.records import describe_score, format_score
from mm_sop.visualization import galleries
from mm_sop.visualization.charts import Curve, curves_chart, knn_chart, time_chart
from mm_sop.visualization.data import build_evaluation_datasets, build_train_dataset
from mm_sop.visualization.galleries import Gallery
from mm_sop.visualization.montage import to_png
from mm_sop.visualization.page import Chart, Details, Item, Photo, Section, Table
from mm_sop.visualization.verdict import NETWORKS, Comparison, Verdict

LEAD_CHART = (6.4, 3.6)

CURVES = (
    ('Objective', 'nats', ('loss', 'loss_cls', 'loss_mim', 'loss_koleo', 'loss_resa', 'loss_global', 'loss_local'), ()),
    ('Entropy of the targets', 'nats', ('target_entropy', 'mean_target_entropy'), ('max_entropy',)),
    ('Cosine between embeddings', 'cosine', ('support_cosine', 'support_cosine_max', 'key_cosine'), ()),
    ('Cosine between encodings', 'cosine', ('encoding_cosine', 'redundancy', 'local_global_cosine'), ()),
    ('Assignments', 'share', ('agreement', 'distinct_targets', 'masked_share'), ()),
    ('Assignment within the batch', 'share', ('assignment_entropy', 'assignment_self'), ()),
    ('Assignment to images of the class', 'share', ('assignment_same_class',), ('same_class_chance',)),
    ('Own image found across views', 'share', ('cross_view_top1',), ('cross_view_chance',)),
    ('Learning rate', 'rate', ('lr',), ()),
    ('Momentum of the teacher', 'momentum', ('teacher_momentum',), ()),
    ('Speed', 'images per second', ('images_per_second',), ()),
    ('Gradient norm', 'norm', ('grad_norm',), ()),
    ('Waiting for data', 'share of the time', ('data_wait',), ()),
)
"""Title, unit, names of the curves and of those for comparison."""

SHORT_TITLES = dict(raw_pixels='pixels', color_histogram='colour')

_NOT_SHOWN = ('iter', 'epoch', 'time', 'data_time', 'memory', 'base_lr', 'teacher_temperature')

GALLERIES = dict(
    supports=(
        'Anchors and their supports',
        'Each row is a self-organizing prototype: a random anchor and the 8 pictures nearest to it, with their cosine '
        'to it, after the teacher’s projector. In training, prototypes are drawn in the same way out of the memory '
        'bank, from augmented views. Near-equal cosines close to 1 in all rows would mean collapse.',
    ),
    neighbours=(
        'Nearest neighbours',
        'On the left random queries, then the nearest pictures of the labelled bank by the network’s features. Green: '
        'of the same class. Orange: of another.',
    ),
    attention=(
        'Where the network looks',
        'For vision transformers the attention of [CLS] to the patches in the last block: the mean, then every head. '
        'For other networks the likeness of each place to the whole picture. Bright is much.',
    ),
    views=('Views', 'Training pictures as they are, and the augmented views that the networks get.'),
    masks=(
        'Masks',
        'The teacher sees whole views, the student those with some patches hidden. Some views are left whole.',
    ),
)


def lead_section(records: list[dict], verdict: Verdict, ceiling: dict | None) -> Section:
    """The first chart, and the other scores in short."""
    if not verdict.comparisons:
        return Section('', '')
    text = (
        'Shaded: one standard error. Dashed, for comparison: the network before training, pixels of the picture '
        'shrunk to 16 x 16, a colour histogram of its centre'
    )
    text += ', and a network trained with labels.' if ceiling else '.'
    text += ' SE is the gain in standard errors of the difference.'
    rows = [
        [describe_score(c.name), _percent(c.before), _percent(c.after), f'{c.standard_errors:+.1f}']
        for c in verdict.comparisons
    ]
    table = Table(['in %', 'before', 'after', 'SE'], rows)
    return Section('', text, [_knn_item(verdict.comparisons[0].name, records, ceiling, size=LEAD_CHART), table])


def knn_section(records: list[dict], verdict: Verdict, ceiling: dict | None) -> Section:
    """All scores beside all references, and their charts."""
    references = [_references(comparison.name, records, ceiling) for comparison in verdict.comparisons]
    others = [name for name in dict.fromkeys(name for group in references for name in group) if name != 'untrained']
    rows = [
        _knn_row(comparison, [group.get(name) for name in others])
        for comparison, group in zip(verdict.comparisons, references, strict=True)
    ]
    heading = ['in %', 'untrained', 'trained', 'gain', 'in standard errors', *others]
    charts = [_knn_item(comparison.name, records, ceiling) for comparison in verdict.comparisons[1:]]
    text = (
        'Pictures are classified by the votes of their nearest neighbours in a labelled bank. “Class” names the kind '
        'of object, “identity” the very object. ± is one standard error: over objects where they are not in the bank, '
        'else over pictures.'
    )
    return Section('k-nearest neighbours', text, [Table(heading, rows), *charts] if rows else [])


def curve_section(scalars: dict[str, Curve]) -> Section:
    """Everything that was logged during training."""
    groups = [(title, unit, _named(scalars, names), _named(scalars, quiet)) for title, unit, names, quiet in CURVES]
    known = {name for _, _, names, quiet in CURVES for name in (*names, *quiet)}
    others = [name for name in scalars if name not in known and name not in _NOT_SHOWN and not name.startswith('knn/')]
    groups += [(name.replace('_', ' '), 'value', _named(scalars, [name]), {}) for name in others]
    charts = [
        _chart(f'curve_{index:02d}', partial(curves_chart, curves, title, unit, limits=quiet), title)
        for index, (title, unit, curves, quiet) in enumerate(groups)
        if curves
    ]
    text = 'The value of the objective depends on the settings and says little about what is learnt.'
    return Section('Training', text if charts else 'No scalars have been logged.', charts)


def picture_sections(config: Config, model: nn.Module | None, seed: int) -> tuple[list[Section], dict[str, dict]]:
    """What the network sees and makes of it.

    Args:
        config: Config of the run.
        model: The trained model, or None.
        seed: Seed for the choice of pictures.

    Returns:
        Sections, and the numbers behind the pictures by gallery.
    """
    if model is None:
        return [Section('Pictures', 'No checkpoint was given, so there is no network to show pictures of.')], {}
    with isolated_random_state(cuda=True), evaluation_mode(model), torch.no_grad():
        shown = {name: gallery for name, gallery in _draw_galleries(config, model, seed).items() if gallery}
    parts = [
        Section(*GALLERIES[name], [Photo(name, to_png(gallery.image), GALLERIES[name][0])])
        for name, gallery in shown.items()
    ]
    return parts, {name: gallery.data for name, gallery in shown.items()}


def run_section(config: Config, settings: dict[str, str], seconds: dict[str, float]) -> Section:
    """Settings, and where the time went."""
    items: list[Item] = [Table(['setting', 'value'], list(settings.items()), wrap=True)]
    items.append(Details('The whole config', config.pretty_text))
    if not seconds:
        return Section('Settings', '', items)
    chart = _chart('time', partial(time_chart, seconds), 'Shares of the time')
    return Section('Settings and time', f'About {format_duration(sum(seconds.values()))} in all.', [chart, *items])


def _draw_galleries(config: Config, model: nn.Module, seed: int) -> dict[str, Gallery | None]:
    train = build_train_dataset(config)
    bank, queries = build_evaluation_datasets(config, train)
    pictures = galleries.PictureSet(model, bank, seed=seed)
    unseen = pictures if queries is None else galleries.PictureSet(model, queries, seed=seed)
    has_labels = queries is not None and unseen.labels is not None
    is_bgr = galleries.is_bgr(model)
    return dict(
        supports=galleries.support_gallery(pictures, seed=seed) if galleries.has_prototypes(model) else None,
        neighbours=galleries.neighbor_gallery(pictures, unseen, seed=seed) if has_labels else None,
        attention=galleries.attention_gallery(unseen, seed=seed),
        views=galleries.view_gallery(train, is_bgr, seed=seed) if train else None,
        masks=galleries.mask_gallery(train, is_bgr, seed=seed) if train else None,
    )


def _references(name: str, records: list[dict], ceiling: dict | None) -> dict[str, dict]:
    """What a score is compared with: the untrained network, features without a network, the ceiling."""
    untrained = [record['scores'].get(name) for record in records if record['iter'] == 0]
    others = [record for record in records if record['iter'] is None] + ([ceiling] if ceiling else [])
    without_readout = name.removesuffix('_patch')
    found = dict(untrained=untrained[0] if untrained else None)
    for record in others:
        title = SHORT_TITLES.get(record['network'], record['network'])
        found[title] = record['scores'].get(without_readout)
    return {title: score for title, score in found.items() if score is not None}


def _knn_row(comparison: Comparison, others: Sequence[dict | None]) -> list[str]:
    return [
        describe_score(comparison.name),
        format_score(comparison.before),
        format_score(comparison.after),
        f'{100 * comparison.gain:+.1f}',
        f'{comparison.standard_errors:+.1f}',
        *map(format_score, others),
    ]


def _knn_item(name: str, records: list[dict], ceiling: dict | None, **size) -> Chart:
    found = [record for record in records if record['network'] in NETWORKS and name in record['scores']]
    curve = [dict(record['scores'][name], iter=record['iter']) for record in sorted(found, key=lambda r: r['iter'])]
    title = describe_score(name)
    draw = partial(knn_chart, title, curve, _references(name, records, ceiling), **size)
    return _chart(f'knn_{name}', draw, f'k-NN accuracy: {title}')


def _chart(name: str, draw: Callable, text: str) -> Chart:
    return Chart.drawn(name, lambda theme: draw(theme=theme), f'Chart over the iterations. {text}')


def _named(scalars: dict[str, Curve], names: Sequence[str]) -> dict[str, Curve]:
    return {name.replace('_', ' '): scalars[name] for name in names if name in scalars}


def _percent(score: dict) -> str:
    return f'{100 * score["accuracy"]:.1f}'


def format_duration(seconds: float) -> str:
    """Seconds as hours and minutes, or as minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s'
