"""The model card of an export."""

import json
from pathlib import Path

from mm_sop import __version__
from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.loading import Encoder, EncoderSpecification
from mm_sop.evaluation.records import KNNRecords, format_table
from mm_sop.evaluation.results import (
    EvaluationResults,
    describe_score_name,
    differing_setup,
    format_figure,
    markdown_row,
    setup_cells,
)
from mm_sop.export.target import Target

_LIBRARIES = dict(timm='timm', huggingface='transformers', onnx='onnx')
_CARD = """---
license: {licence}
library_name: {library}
pipeline_tag: image-feature-extraction
tags: [self-supervised-learning, mm-sop]
---

# {title}

{architecture} for {target}, {history}. It gives a global representation and a
map of local ones for every picture.

## Use

```python
{usage}
```

`images` are (B, 3, {size}, {size}), RGB, normalised by mean {mean} and deviation
{std} of 0 ... 255. The shorter side of a picture is resized to {edge} pixels (bicubic) and the centre is cropped.

## Training

| | |
| --- | --- |
{training}

## Figures

{figures}

## Check

Loaded back by {target}, features of {count} pictures differ from those of MM-SOP {version} by at most {difference:.1e}.

## Licence

{licence}, for the weights. The pictures that they were trained on keep their own licences.
"""


def write_card(
    encoder: Encoder,
    target: Target,
    folder: Path,
    name: str,
    differences: dict[str, float],
    count: int,
    run: str | Path | None,
    licence: str,
) -> None:
    """Write ``README.md``, and ``export.json`` with the differences.

    Args:
        encoder: The encoder.
        target: Where it was written for.
        folder: Where to write.
        name: Name that the folder will have at last.
        differences: Results of the comparison.
        count: Number of pictures compared.
        run: Folder of the run, with ``knn.json`` and ``evaluation/results.json`` if they exist, or None.
        licence: Licence of the weights.
    """
    specification = encoder.specification
    backbone = specification.backbone or dict(type=type(encoder.network).__name__)
    text = _CARD.format(
        licence=licence,
        library=_LIBRARIES.get(target.name, 'mm-sop'),
        title=f'{specification.origin.get("method") or "Encoder"}: {backbone["type"]}',
        architecture=_describe(backbone),
        target=target.name,
        history=_history(specification),
        usage=target.usage(encoder, Path(name)),
        size=specification.image_size,
        edge=encoder.transform.resize_edge,
        mean=list(specification.mean),
        std=list(specification.std),
        training='\n'.join(f'| {key} | {value} |' for key, value in specification.origin.items() if value is not None),
        figures=_figures(specification.origin, specification.network, run),
        count=count,
        version=__version__,
        difference=max(differences.values()),
    )
    write_atomically(folder / 'README.md', text)
    write_atomically(folder / 'export.json', json.dumps(dict(differences=differences, pictures=count), indent=1))


def _history(specification: EncoderSpecification) -> str:
    method, source = specification.origin.get('method'), specification.origin.get('source')
    return f'the {specification.network} of {method}' if method else f'read from a checkpoint of {source or "MM-SOP"}'


def _describe(backbone: dict) -> str:
    arch = backbone.get('arch')
    details = dict(backbone, **arch) if isinstance(arch, dict) else backbone
    shown = ('depth', 'embed_dims', 'num_layers', 'num_heads', 'patch_size')
    names = shown if isinstance(arch, dict) else ('arch', *shown)
    options = ', '.join(f'{name} {details[name]}' for name in names if name in details)
    return f'`{backbone["type"]}` ({options})' if options else f'`{backbone["type"]}`'


def _figures(origin: dict, network: str, run: str | Path | None) -> str:
    tables = [] if run is None else [_training_figures(origin, network, run), _evaluation_figures(origin, run)]
    return '\n\n'.join(filter(None, tables)) or 'None were recorded for these weights.'


def _training_figures(origin: dict, network: str, run: str | Path) -> str:
    records = KNNRecords(run)
    found = records.find(network, origin.get('iter')) if origin.get('iter') else None
    if found is None:
        return ''
    baselines = [record for record in records if record['iter'] is None]
    table = format_table([*baselines, found]).split('\n', 2)[2].strip()
    return f'k-nearest-neighbour accuracy in percent, by the run that trained it:\n\n{table}'


def _evaluation_figures(origin: dict, run: str | Path) -> str:
    """The first figure of every protocol that judged exactly these weights."""
    identity = {key: origin.get(key) for key in ('checkpoint_sha256', 'prefix')}
    done = [record for record in EvaluationResults(Path(run, 'evaluation')) if record['status'] == 'done']
    records = [record for record in done if identity.items() <= record['card']['encoder'].items()]
    if not records:
        return ''
    names, lines = differing_setup(records), []
    for record in records:
        name, score = next(iter(record['scores'].items()))
        # Folders of this machine tell nobody anything.
        setup = [Path(cell).name for cell in setup_cells(record, names)]
        lines.append(markdown_row([record['protocol'], *setup, describe_score_name(name), format_figure(score)]))
    text = 'The first figure of every evaluation, in percent where it is a share:'
    head = [['protocol', *names, 'figure', 'value'], [*['---'] * (len(names) + 2), '---:']]
    return '\n'.join([text, '', *map(markdown_row, head), *lines])
