"""Pages of evaluation results, and the drawing of what the protocols return."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mm_sop.evaluation.results import (
    ERRORS,
    EvaluationResults,
    describe_score_name,
    differing_setup,
    format_value,
    setup_cells,
)
from mm_sop.report import evaluation_charts as charts
from mm_sop.report.locality import cosines_chart, effective_field_chart, embedding_chart, map_gallery
from mm_sop.report.page import Chart, Details, Photo, Section, Table, render_page
from mm_sop.report.robustness import perturbation_gallery, robustness_charts
from mm_sop.report.strips import retrieval_strips, video_strips
from mm_sop.utils.files import write_atomically

Drawing = Callable[[Mapping[str, Any]], list[Chart | Photo]]
"""Draws the data of a protocol."""


def evaluation_sections(folder: str | Path) -> list[Section]:
    """Sections of all evaluations in the folder of ``results.json``: an overview, and one for each protocol."""
    results = EvaluationResults(folder)
    names = differing_setup(results.records)
    overview, others, sections = [], [], []
    for record in results:
        protocol, setup = record['protocol'], setup_cells(record, names)
        if record['status'] != 'done':
            others.append([protocol, *setup, record['status'], record['reason']])
            continue
        rows = [[describe_score_name(name), format_value(score)] for name, score in record['scores'].items()]
        overview.append([protocol, record['checkpoint'], *setup, *rows[0], f'{record["seconds"]:.1f}'])
        card = Details('Protocol card', json.dumps(record['card'], indent=1))
        shown = [f'{name} {cell}' for name, cell in zip(names, setup, strict=True) if cell]
        items = [Table(['score', 'value'], rows), *record_images(results, record), card]
        sections.append(Section(' · '.join([protocol, record['checkpoint'], *shown]), '', items))
    if overview:
        table = Table(['protocol', 'checkpoint', *names, 'first score', 'value', 'seconds'], overview)
        text = 'The first score of every protocol; fractions in percent.'
        sections.insert(0, Section('Evaluation', text, [table]))
    if others:
        table = Table(['protocol', *names, 'status', 'reason'], others, wrap=True)
        sections.append(Section('Not evaluated', '', [table]))
    return sections


def write_evaluation_page(folder: str | Path) -> Path:
    """Write ``index.html`` with everything in the folder of ``results.json``, and store newly drawn images there.

    Returns:
        Path of the page.
    """
    results = EvaluationResults(folder)
    done = [record for record in results if record['status'] == 'done']
    for record in done:
        if 'images' not in record:
            images = record_images(results, record)
            files = {name: content for image in images for name, content in image.files.items()}
            results.add_images(record, [dict(name=image.name, text=image.text) for image in images], files)
    checkpoints = ', '.join(dict.fromkeys(record['checkpoint'] for record in results))
    seconds = sum(record['seconds'] for record in done)
    opening = f'{len(done)} of {len(results.records)} evaluations are done.'
    notes = f'{seconds:.0f} seconds in total. {ERRORS}'
    page = render_page(f'Evaluation · {checkpoints}', 'neutral', opening, notes, evaluation_sections(folder))
    write_atomically(Path(folder, 'index.html'), page)
    return Path(folder, 'index.html')


def record_images(results: EvaluationResults, record: dict) -> list[Chart | Photo]:
    """Charts and galleries of a record: the stored ones, or drawn from its data."""
    if 'images' not in record and 'data' in record:
        drawn = draw(record['protocol'], results.read_data(record))
        return [replace(image, name=f'{Path(record["data"]).stem}_{image.name}') for image in drawn]
    images: list[Chart | Photo] = []
    for stored in record.get('images', ()):
        name, text = stored['name'], stored['text']
        light, dark = (results.folder / 'images' / f'{name}{suffix}.png' for suffix in ('', '_dark'))
        if dark.is_file():
            images.append(Chart(name, light.read_bytes(), dark.read_bytes(), text))
        else:
            images.append(Photo(name, light.read_bytes(), text))
    return images


def draw(protocol: str, data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw the data of a protocol, see :func:`mm_sop.evaluation.results.read_data`, as charts and galleries.

    Their names are unique. There are none if no drawing is registered in :data:`DRAWINGS`.
    """
    return DRAWINGS[protocol](data) if protocol in DRAWINGS else []


def _confusions(data: Mapping[str, Any]) -> list[Chart | Photo]:
    drawn: list[Chart | Photo] = []
    for name, each in data['confusion'].items():
        chart = partial(charts.confusion_chart, each['matrix'], each['classes'], each['title'])
        text = f'{each["title"]}: fractions of the predicted classes for every true class.'
        drawn.append(Chart.drawn(f'confusion_{name}', chart, text))
    return drawn


def _few_labels(data: Mapping[str, Any], title: str) -> list[Chart | Photo]:
    text = f'{title}: accuracy by the number of labels, with the standard deviation over draws.'
    chart = partial(charts.scores_chart, data['few_labels'], 'labels')
    return [Chart.drawn('few_labels', chart, text)] if data['few_labels'] else []


def _linear(data: Mapping[str, Any]) -> list[Chart | Photo]:
    grid = data['grid']
    batch = 'for a batch of 256' if grid['scaled_by_batch'] else 'without scaling'
    text = f'Validation accuracy of all linear classifiers; the selected one is framed. Learning rates {batch}.'
    chart = partial(charts.grid_chart, grid['rows'], grid['columns'], grid['selected'])
    return [Chart.drawn('grid', chart, text), *_confusions(data)]


def _finetune(data: Mapping[str, Any]) -> list[Chart | Photo]:
    chart = partial(charts.scores_chart, {'Fine-tuning': data['lines']}, 'labels')
    text = 'Accuracy after fine-tuning by the fraction of the labels.'
    return [*_confusions(data), Chart.drawn('labels', chart, text)]


def _one_chart(name: str, chart: Callable[..., Figure], key: str, text: str) -> Drawing:
    """Make the drawing of a protocol that has one chart, of one entry of its data."""
    return lambda data: [Chart.drawn(name, partial(chart, data[key]), text)]


def _locality(data: Mapping[str, Any]) -> list[Chart | Photo]:
    cosines, field = partial(cosines_chart, **data['cosines']), partial(effective_field_chart, **data['field'])
    images: list[Chart | Photo] = [
        Chart.drawn('cosines', cosines, 'Cosine similarities within and between images'),
        Chart.drawn('field', field, 'Effective receptive field'),
        map_gallery(**data['maps']),
    ]
    if 'embedding' in data:
        text = 'UMAP of the global representations, colored by class'
        images.append(Chart.drawn('embedding', partial(embedding_chart, **data['embedding']), text))
    return images


def _retrieval(data: Mapping[str, Any]) -> list[Chart | Photo]:
    text = '{}, {}: queries from the best to the worst answered, each with the most similar images'
    return [
        retrieval_strips(f'strips_{name.replace("/", "-")}', each['rows'], text.format(name, each['level']))
        for name, each in data['strips'].items()
    ]


def _copy(data: Mapping[str, Any]) -> list[Chart | Photo]:
    text = 'Strong copies from the best to the worst recognized, each with the most similar originals'
    strips = retrieval_strips('strips_strong', data['strips'], text)
    chart = partial(charts.copies_chart, data['precisions'])
    return [strips, Chart.drawn('kinds', chart, 'Mean average precision by kind of edit.')]


DRAWINGS: dict[str, Drawing] = dict(
    clustering=_one_chart(
        'layers',
        charts.taps_chart,
        'layers',
        'Agreement of clusters with labels after each layer from the encoder to the end of the projector.',
    ),
    copy=_copy,
    finetune=_finetune,
    knn=lambda data: [*_confusions(data), *_few_labels(data, 'k-NN')],
    linear=_linear,
    locality=_locality,
    logistic=lambda data: _few_labels(data, 'Logistic regression'),
    rank=_one_chart(
        'spectrum',
        charts.spectrum_chart,
        'spectra',
        'Singular values of the centered features as fractions of their sum, in falling order.',
    ),
    retrieval=_retrieval,
    robustness=lambda data: [*robustness_charts(data['accuracies']), perturbation_gallery(data['gallery'])],
    transfer=_one_chart(
        'transfer',
        charts.transfer_chart,
        'accuracies',
        'Accuracy by k-NN and by a linear classifier on every test set.',
    ),
    videoseg=lambda data: [video_strips('sequences', data['sequences'])],
)
"""Drawing of each protocol's data, by the registered name of the protocol."""
