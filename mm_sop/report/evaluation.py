"""Pages of evaluation results, and the drawing of what the protocols return."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mm_sop.evaluation.results import (
    ERRORS,
    EvaluationResults,
    describe_score_name,
    differing_setup,
    format_value,
    setup_cells,
)
from mm_sop.report.evaluation_charts import (
    confusion_chart,
    copies_chart,
    grid_chart,
    scores_chart,
    spectrum_chart,
    taps_chart,
    transfer_chart,
)
from mm_sop.report.locality import cosines_chart, effective_field_chart, embedding_chart, map_gallery
from mm_sop.report.page import Chart, Details, Photo, Section, Table, render_page
from mm_sop.report.robustness import perturbation_gallery, robustness_charts
from mm_sop.report.strips import retrieval_strips, video_strips
from mm_sop.utils.files import write_atomically


def evaluation_sections(folder: str | Path) -> list[Section]:
    """Sections of all evaluations in a folder: an overview, and one for each protocol.

    Args:
        folder: Folder of ``results.json``; without it there are no sections.
    """
    results = EvaluationResults(folder)
    names = differing_setup(results.records)
    done = [record for record in results if record['status'] == 'done']
    sections = [_protocol_section(results, record, names) for record in done]
    others = [
        [record['protocol'], *setup_cells(record, names), record['status'], record['reason']]
        for record in results
        if record['status'] != 'done'
    ]
    if others:
        headers = ['protocol', *names, 'status', 'reason']
        sections.append(Section('Not evaluated', '', [Table(headers, others, wrap=True)]))
    return [_overview(done, names), *sections] if done else sections


def write_evaluation_page(folder: str | Path) -> Path:
    """Write ``index.html`` with everything in a folder of results, and store newly drawn images there.

    Args:
        folder: Folder of ``results.json``.

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


def _overview(done: list[dict], names: list[str]) -> Section:
    rows = []
    for record in done:
        name, score = next(iter(record['scores'].items()))
        cells = [record['protocol'], record['checkpoint'], *setup_cells(record, names)]
        rows.append([*cells, describe_score_name(name), format_value(score), f'{record["seconds"]:.1f}'])
    table = Table(['protocol', 'checkpoint', *names, 'first score', 'value', 'seconds'], rows)
    return Section('Evaluation', 'The first score of every protocol; fractions in percent.', [table])


def _protocol_section(results: EvaluationResults, record: dict, names: list[str]) -> Section:
    rows = [[describe_score_name(name), format_value(score)] for name, score in record['scores'].items()]
    card = Details('Protocol card', json.dumps(record['card'], indent=1))
    items = [Table(['score', 'value'], rows), *record_images(results, record), card]
    setup = [f'{name} {cell}' for name, cell in zip(names, setup_cells(record, names), strict=True) if cell]
    return Section(' · '.join([record['protocol'], record['checkpoint'], *setup]), '', items)


def record_images(results: EvaluationResults, record: dict) -> list[Chart | Photo]:
    """Charts and galleries of a record: the stored ones, or drawn from its data.

    Args:
        results: Results of a folder.
        record: One of its records.
    """
    if 'images' in record or 'data' not in record:
        return [_read_image(results.folder / 'images', **image) for image in record.get('images', ())]
    prefix = Path(record['data']).stem
    drawn = draw(record['protocol'], results.read_data(record))
    return [replace(image, name=f'{prefix}_{image.name}') for image in drawn]


def _read_image(folder: Path, name: str, text: str) -> Chart | Photo:
    light, dark = (folder / f'{name}{suffix}.png' for suffix in ('', '_dark'))
    if dark.is_file():
        return Chart(name, light.read_bytes(), dark.read_bytes(), text)
    return Photo(name, light.read_bytes(), text)


def draw(protocol: str, data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw the data of a protocol.

    Args:
        protocol: Name of the protocol.
        data: :attr:`ProtocolResult.data`, see :func:`mm_sop.evaluation.results.read_data`.

    Returns:
        Charts and galleries with unique names; none if no drawing is registered in :data:`DRAWINGS`.
    """
    return DRAWINGS[protocol](data) if protocol in DRAWINGS else []


def _draw_confusions(confusions: Mapping[str, Mapping]) -> list[Chart | Photo]:
    return [
        Chart.drawn(
            f'confusion_{name}',
            partial(confusion_chart, each['matrix'], each['classes'], each['title']),
            f'{each["title"]}: fractions of the predicted classes for every true class.',
        )
        for name, each in confusions.items()
    ]


def _draw_few_labels(panels: Mapping, title: str) -> list[Chart | Photo]:
    text = f'{title}: accuracy by the number of labels, with the standard deviation over draws.'
    return [Chart.drawn('few_labels', partial(scores_chart, panels, 'labels'), text)] if panels else []


def draw_knn(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw confusion matrices, and the accuracy over the number of labels."""
    return [*_draw_confusions(data['confusion']), *_draw_few_labels(data['few_labels'], 'k-NN')]


def draw_logistic(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw the accuracy over the number of labels."""
    return _draw_few_labels(data['few_labels'], 'Logistic regression')


def draw_linear(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw the validation accuracies of the grid, and confusion matrices of the selected classifier."""
    grid = data['grid']
    batch = 'for a batch of 256' if grid['scaled_by_batch'] else 'without scaling'
    text = f'Validation accuracy of all linear classifiers; the selected one is framed. Learning rates {batch}.'
    chart = Chart.drawn('grid', partial(grid_chart, grid['rows'], grid['columns'], grid['selected']), text)
    return [chart, *_draw_confusions(data['confusion'])]


def draw_finetune(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw confusion matrices, and the accuracy over the fraction of the labels."""
    text = 'Accuracy after fine-tuning by the fraction of the labels.'
    chart = Chart.drawn('labels', partial(scores_chart, {'Fine-tuning': data['lines']}, 'labels'), text)
    return [*_draw_confusions(data['confusion']), chart]


def draw_transfer(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw the accuracies on all datasets."""
    text = 'Accuracy by k-NN and by a linear classifier on every test set.'
    return [Chart.drawn('transfer', partial(transfer_chart, data['accuracies']), text)]


def draw_clustering(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw the agreement of clusters with labels by layer."""
    text = 'Agreement of clusters with labels after each layer from the encoder to the end of the projector.'
    return [Chart.drawn('layers', partial(taps_chart, data['layers']), text)]


def draw_rank(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw the spectrum of the features."""
    text = 'Singular values of the centered features as fractions of their sum, in falling order.'
    return [Chart.drawn('spectrum', partial(spectrum_chart, data['spectra']), text)]


def draw_locality(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw cosine similarities, receptive field, maps and embedding."""
    cosines = partial(cosines_chart, data['cosines']['within'], data['cosines']['between'])
    field = partial(effective_field_chart, *(data['field'][name] for name in ('field', 'center', 'radii')))
    images: list[Chart | Photo] = [
        Chart.drawn('cosines', cosines, 'Cosine similarities within and between images'),
        Chart.drawn('field', field, 'Effective receptive field'),
        map_gallery(**data['maps']),
    ]
    if 'embedding' in data:
        text = 'UMAP of the global representations, colored by class'
        chart = partial(embedding_chart, *(data['embedding'][name] for name in ('points', 'labels', 'classes')))
        images.append(Chart.drawn('embedding', chart, text))
    return images


def draw_retrieval(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw queries with the most similar images of every set."""
    photos: list[Chart | Photo] = []
    for name, each in data['strips'].items():
        text = (
            f'{name}, {each["level"]}: queries from the best to the worst answered, each with the most similar images'
        )
        photos.append(retrieval_strips(f'strips_{name.replace("/", "-")}', each['rows'], text))
    return photos


def draw_copy(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw strong copies with the most similar originals, and the precision by kind of edit."""
    text = 'Strong copies from the best to the worst recognized, each with the most similar originals'
    chart = partial(copies_chart, data['precisions'])
    return [
        retrieval_strips('strips_strong', data['strips'], text),
        Chart.drawn('kinds', chart, 'Mean average precision by kind of edit.'),
    ]


def draw_videoseg(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw frames with predicted masks."""
    return [video_strips('sequences', data['sequences'])]


def draw_robustness(data: Mapping[str, Any]) -> list[Chart | Photo]:
    """Draw the accuracy under all disturbances, and disturbed images."""
    return [*robustness_charts(data['accuracies']), perturbation_gallery(data['gallery'])]


DRAWINGS: dict[str, Callable[[Mapping[str, Any]], list[Chart | Photo]]] = dict(
    clustering=draw_clustering,
    copy=draw_copy,
    finetune=draw_finetune,
    knn=draw_knn,
    linear=draw_linear,
    locality=draw_locality,
    logistic=draw_logistic,
    rank=draw_rank,
    retrieval=draw_retrieval,
    robustness=draw_robustness,
    transfer=draw_transfer,
    videoseg=draw_videoseg,
)
"""Drawing of each protocol's data, by the registered name of the protocol."""
