"""Report of a run: one page with charts and images."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

import mm_sop
from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.evaluation.classification.knn_records import KNNRecords, describe_score, format_score
from mm_sop.evaluation.features.extraction import evaluation_mode
from mm_sop.report.charts import Curve, curves_chart, knn_chart, time_chart
from mm_sop.report.evaluation import evaluation_sections
from mm_sop.report.galleries import GALLERIES, draw_galleries
from mm_sop.report.montage import to_png
from mm_sop.report.page import Chart, Details, Item, Photo, Section, Table, render_page
from mm_sop.report.run_log import estimate_seconds, read_scalars
from mm_sop.report.verdict import NETWORKS, Verdict, judge
from mm_sop.utils.files import make_folder_atomically

CEILING = 'supervised_ceiling.json'
"""Record of a network trained with labels, beside ``knn.json``."""

LEAD_CHART = (6.4, 3.6)
"""Width and height of the first chart in inches."""

CURVES = (
    ('Objective', 'nats', ('loss', 'loss_cls', 'loss_mim', 'loss_koleo', 'loss_resa', 'loss_global', 'loss_local'), ()),
    ('Entropy of the targets', 'nats', ('target_entropy', 'mean_target_entropy'), ('max_entropy',)),
    ('Cosine similarity of embeddings', 'cosine', ('support_cosine', 'support_cosine_max', 'key_cosine'), ()),
    ('Cosine similarity of encodings', 'cosine', ('encoding_cosine', 'redundancy', 'local_global_cosine'), ()),
    ('Assignments', 'fraction', ('agreement', 'distinct_targets', 'masked_fraction'), ()),
    ('Assignment within the batch', 'fraction', ('assignment_entropy', 'assignment_self'), ()),
    ('Assignment to images of the same class', 'fraction', ('assignment_same_class',), ('same_class_chance',)),
    ('Same image retrieved across views', 'fraction', ('cross_view_top1',), ('cross_view_chance',)),
    ('Learning rate', 'rate', ('lr',), ()),
    ('Momentum of the teacher', 'momentum', ('teacher_momentum',), ()),
    ('Speed', 'images per second', ('images_per_second',), ()),
    ('Gradient norm', 'norm', ('grad_norm',), ()),
    ('Waiting for data', 'fraction of the time', ('data_wait',), ()),
)
"""Title, unit, names of the curves, and names of the curves for comparison."""

SHORT_TITLES = dict(raw_pixels='pixels', color_histogram='color')

_NOT_SHOWN = ('iter', 'epoch', 'time', 'data_time', 'memory', 'base_lr', 'teacher_temperature')


def write_report(work_dir: str | Path, config: Config, model: nn.Module | None = None, seed: int = 0) -> Path:
    """Write ``report/index.html``, its images as PNG files and ``report.json`` into the work directory of a run.

    The page is self-contained. The shown images are chosen at random, the same for all runs with the same data and
    seed. An older report is replaced when the new one is complete. Without a model, the report shows no images.

    Returns:
        Path of the page.
    """
    work_dir = Path(work_dir)
    records, scalars, ceiling = list(KNNRecords(work_dir)), read_scalars(work_dir), None
    if (work_dir / CEILING).is_file():
        ceiling = json.loads((work_dir / CEILING).read_text())
    verdict = judge(records)
    settings = describe_settings(config, model, scalars)
    seconds = estimate_seconds(scalars, records)
    images, galleries = image_sections(config, model, seed)
    sections = [
        lead_section(records, verdict, ceiling),
        knn_section(records, verdict, ceiling),
        *evaluation_sections(work_dir / 'evaluation'),
        curve_section(scalars),
        *images,
        run_section(config, settings, seconds),
    ]
    title = f'{settings.get("algorithm", "Run")} · {work_dir.absolute().name}'
    page = render_page(title, verdict.answer, verdict.opening, verdict.evidence, sections)
    files = {name: content for section in sections for item in section.items for name, content in item.files.items()}
    data = dict(
        **verdict.to_dict(), seconds=seconds, settings=settings, galleries=galleries, seed=seed, files=sorted(files)
    )
    texts = {'report.json': json.dumps(data, indent=1), 'index.html': page}
    files |= {name: text.encode(errors='surrogateescape') for name, text in texts.items()}
    with make_folder_atomically(work_dir / 'report', replace=True) as unfinished:
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
    return work_dir / 'report' / 'index.html'


def lead_section(records: Sequence[dict], verdict: Verdict, ceiling: dict | None) -> Section:
    """The first chart, and the other scores in short."""
    if not verdict.comparisons:
        return Section('', '')
    text = (
        'Shaded: one standard error. Dashed, for comparison: the untrained network, pixels of the image shrunk to '
        '16 x 16, a color histogram of its center'
    )
    text += ', and a network trained with labels.' if ceiling else '.'
    text += ' SE is the gain in standard errors of the difference.'
    rows = []
    for comparison in verdict.comparisons:
        before, after = (f'{100 * score["accuracy"]:.1f}' for score in (comparison.before, comparison.after))
        rows.append([describe_score(comparison.name), before, after, f'{comparison.standard_errors:+.1f}'])
    chart = _knn_chart(verdict.comparisons[0].name, records, ceiling, size=LEAD_CHART)
    return Section('', text, [chart, Table(['accuracy in %', 'before', 'after', 'SE'], rows)])


def knn_section(records: Sequence[dict], verdict: Verdict, ceiling: dict | None) -> Section:
    """All k-NN scores with their references, and their charts."""
    references = [_references(comparison.name, records, ceiling) for comparison in verdict.comparisons]
    others = [name for name in dict.fromkeys(name for group in references for name in group) if name != 'untrained']
    rows = []
    for comparison, group in zip(verdict.comparisons, references, strict=True):
        gain, errors = f'{100 * comparison.gain:+.1f}', f'{comparison.standard_errors:+.1f}'
        scores = [format_score(comparison.before), format_score(comparison.after), gain, errors]
        rows.append([describe_score(comparison.name), *scores, *(format_score(group.get(name)) for name in others)])
    heading = ['accuracy in %', 'untrained', 'trained', 'gain', 'in standard errors', *others]
    charts = [_knn_chart(comparison.name, records, ceiling) for comparison in verdict.comparisons[1:]]
    text = (
        'Images are classified by the votes of their nearest neighbors in a labeled bank. “Class” is the kind of '
        'object, “identity” the individual object. ± is one standard error: over objects if they are not in the bank, '
        'else over images.'
    )
    return Section('k-nearest neighbors', text, [Table(heading, rows), *charts] if rows else [])


def curve_section(scalars: Mapping[str, Curve]) -> Section:
    """Everything that was logged during training."""
    known = {name for _, _, names, quiet in CURVES for name in (*names, *quiet)}
    others = [name for name in scalars if name not in known and name not in _NOT_SHOWN and not name.startswith('knn/')]
    groups = [*CURVES, *((name.replace('_', ' '), 'value', (name,), ()) for name in others)]
    charts = []
    for index, (title, unit, names, quiet) in enumerate(groups):
        curves, limits = (
            {name.replace('_', ' '): scalars[name] for name in some if name in scalars} for some in (names, quiet)
        )
        if curves:
            draw = partial(curves_chart, curves, title, unit, limits=limits)
            charts.append(Chart.drawn(f'curve_{index:02d}', draw, f'{title} over the iterations'))
    text = 'The value of the objective depends on the settings and says little about what is learned.'
    return Section('Training', text if charts else 'No scalars have been logged.', charts)


def image_sections(config: Config, model: nn.Module | None, seed: int) -> tuple[list[Section], dict[str, dict]]:
    """Show what the network sees and what it makes of it, and return the numbers behind the images by gallery."""
    if model is None:
        return [Section('Images', 'No checkpoint was given, so there is no network to show images of.')], {}
    with isolated_random_state(cuda=True), evaluation_mode(model), torch.no_grad():
        drawn = draw_galleries(config, model, seed)
    sections = [
        Section(*GALLERIES[name], [Photo(name, to_png(gallery.image), GALLERIES[name][0])])
        for name, gallery in drawn.items()
    ]
    return sections, {name: gallery.data for name, gallery in drawn.items()}


def run_section(config: Config, settings: Mapping[str, str], seconds: Mapping[str, float]) -> Section:
    """The settings, and the time of every activity."""
    items: list[Item] = [
        Table(['setting', 'value'], list(settings.items()), wrap=True),
        Details('Complete config', config.pretty_text),
    ]
    if not seconds:
        return Section('Settings', '', items)
    chart = Chart.drawn('time', partial(time_chart, seconds), 'Time by activity')
    return Section('Settings and time', f'About {format_duration(sum(seconds.values()))} in total.', [chart, *items])


def describe_settings(config: Config, model: nn.Module | None, scalars: Mapping[str, Curve]) -> dict[str, str]:
    """Describe the most important settings as text by name; settings that a config lacks are left out."""
    settings = config.get('model', {})
    backbone = settings.get('backbone', {})
    arch = backbone.get('arch', backbone.get('depth', ''))
    if isinstance(arch, dict):
        arch = ', '.join(f'{key}={value}' for key, value in arch.items())
    loader, optim_wrapper = config.get('train_dataloader') or {}, config.get('optim_wrapper', {})
    steps = scalars['loss'][0] if 'loss' in scalars else []
    rows = {
        'algorithm': settings.get('type'),
        'backbone': f'{backbone.get("type", "")} {arch}'.strip(),
        'trained parameters': f'{sum(p.numel() for p in model.parameters() if p.requires_grad):,}' if model else None,
        'images': _find(loader, 'data_root'),
        'images per process and step': loader.get('batch_size'),
        'iterations': f'{steps[-1]:,}' if steps else None,
        'optimizer': ' '.join(f'{key}={value}' for key, value in optim_wrapper.get('optimizer', {}).items()),
        'precision': optim_wrapper.get('dtype'),
        'seed': config.get('randomness', {}).get('seed'),
        'versions': f'mm-sop {mm_sop.__version__}, torch {torch.__version__}',
    }
    for owner, title in (('head', '[CLS] prototypes'), ('target_generator', 'patch prototypes')):
        prototypes = (settings.get(owner) or {}).get('prototypes')
        if prototypes:
            plain = {key: value for key, value in prototypes.items() if not isinstance(value, dict) and key != 'type'}
            values = [f'{key}={value}' for key, value in plain.items()]
            rows[title] = ', '.join([*values, f'bank={prototypes["bank"].get("size")}'])
    return {name: str(value) for name, value in rows.items() if value not in (None, '')}


def format_duration(seconds: float) -> str:
    """Format seconds as hours and minutes, or as minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s'


def _find(settings: Any, key: str) -> Any:
    """First value of a key in nested settings."""
    if not isinstance(settings, dict):
        return None
    if key in settings:
        return settings[key]
    return next((value for part in settings.values() if (value := _find(part, key)) is not None), None)


def _references(name: str, records: Sequence[dict], ceiling: dict | None) -> dict[str, dict]:
    """What a score is compared with: the untrained network, features without a network, the supervised ceiling."""
    untrained = [record['scores'].get(name) for record in records if record['iter'] == 0]
    references = dict(untrained=untrained[0] if untrained else None)
    for record in [*(record for record in records if record['iter'] is None), *([ceiling] if ceiling else [])]:
        title = SHORT_TITLES.get(record['network'], record['network'])
        # Features without a network have no readouts.
        references[title] = record['scores'].get(name.removesuffix('_patch'))
    return {title: score for title, score in references.items() if score is not None}


def _knn_chart(name: str, records: Sequence[dict], ceiling: dict | None, **size: Any) -> Chart:
    found = [record for record in records if record['network'] in NETWORKS and name in record['scores']]
    curve = [dict(record['scores'][name], iter=record['iter']) for record in sorted(found, key=lambda r: r['iter'])]
    title = describe_score(name)
    draw = partial(knn_chart, title, curve, _references(name, records, ceiling), **size)
    return Chart.drawn(f'knn_{name}', draw, f'k-NN accuracy over the iterations: {title}')
