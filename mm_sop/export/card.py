"""The model card of an export."""

import json
from pathlib import Path

from mm_sop import __version__
from mm_sop.encoders.encoder import Encoder
from mm_sop.evaluation.classification.knn_records import KNNRecords, format_table
from mm_sop.evaluation.results import EvaluationResults, describe_score_name, differing_setup, format_value, setup_cells
from mm_sop.export.target import Target
from mm_sop.utils.files import write_atomically
from mm_sop.utils.tables import markdown_table

_LIBRARIES = dict(timm='timm', huggingface='transformers', onnx='onnx')
_CARD = """---
license: {license}
library_name: {library}
pipeline_tag: image-feature-extraction
tags: [self-supervised-learning, mm-sop]
---

# {title}

{architecture} for {target}, {history}. It returns a global representation and a
map of local representations for every image.

## Use

```python
{usage}
```

`images` are (B, 3, {size}, {size}), RGB, normalized by mean {mean} and standard
deviation {std} of the range 0 to 255. The shorter side of an image is resized to {edge} pixels (bicubic), then
the center is cropped.

## Training

| | |
| --- | --- |
{training}

## Results

{results}

## Check

Loaded back by {target}, features of {count} images differ from those of MM-SOP {version} by at most {difference:.1e}.

## License

{license}, for the weights. The training images keep their own licenses.
"""


def write_card(
    encoder: Encoder,
    target: Target,
    folder: Path,
    name: str,
    differences: dict[str, float],
    count: int,
    run: str | Path | None,
    license: str,
) -> None:
    """Write ``README.md``, and ``export.json`` with the largest absolute differences of the features, by kind.

    The files are written into ``folder``, which will get the final ``name``. ``count`` images were compared. A ``run``
    has results in ``knn.json`` and ``evaluation/results.json``, as far as they exist.
    """
    specification, origin = encoder.specification, encoder.specification.origin
    method, source = origin.get('method'), origin.get('source')
    of_run = f'the {specification.network} of {method}'
    tables = (
        [] if run is None else [_training_results(origin, specification.network, run), _evaluation_results(origin, run)]
    )
    backbone = specification.backbone or dict(type=type(encoder.network).__name__)
    text = _CARD.format(
        license=license,
        library=_LIBRARIES.get(target.name, 'mm-sop'),
        title=f'{method or "Encoder"}: {backbone["type"]}',
        architecture=_describe(backbone),
        target=target.name,
        history=of_run if method else f'read from a checkpoint of {source or "MM-SOP"}',
        usage=target.usage(encoder, Path(name)),
        size=specification.image_size,
        edge=encoder.transform.resize_edge,
        mean=list(specification.mean),
        std=list(specification.std),
        training='\n'.join(f'| {key} | {value} |' for key, value in origin.items() if value is not None),
        results='\n\n'.join(filter(None, tables)) or 'No results were recorded for these weights.',
        count=count,
        version=__version__,
        difference=max(differences.values()),
    )
    write_atomically(folder / 'README.md', text)
    write_atomically(folder / 'export.json', json.dumps(dict(differences=differences, images=count), indent=1))


def _describe(backbone: dict) -> str:
    arch = backbone.get('arch')
    details = dict(backbone, **arch) if isinstance(arch, dict) else backbone
    shown = ('depth', 'embed_dims', 'num_layers', 'num_heads', 'patch_size')
    names = shown if isinstance(arch, dict) else ('arch', *shown)
    options = ', '.join(f'{name} {details[name]}' for name in names if name in details)
    return f'`{backbone["type"]}` ({options})' if options else f'`{backbone["type"]}`'


def _training_results(origin: dict, network: str, run: str | Path) -> str:
    records = KNNRecords(run)
    found = records.find(network, origin.get('iter')) if origin.get('iter') else None
    if found is None:
        return ''
    baselines = [record for record in records if record['iter'] is None]
    table = format_table([*baselines, found]).split('\n', 2)[2].strip()
    return f'k-NN accuracy in percent, measured by the training run:\n\n{table}'


def _evaluation_results(origin: dict, run: str | Path) -> str:
    """Tabulate the first score of every protocol that evaluated exactly these weights."""
    identity = {key: origin.get(key) for key in ('checkpoint_sha256', 'prefix')}
    done = [record for record in EvaluationResults(Path(run, 'evaluation')) if record['status'] == 'done']
    records = [record for record in done if identity.items() <= record['card']['encoder'].items()]
    if not records:
        return ''
    names, rows = differing_setup(records), []
    for record in records:
        name, score = next(iter(record['scores'].items()))
        # Absolute paths mean nothing on other machines.
        setup = [Path(cell).name for cell in setup_cells(record, names)]
        rows.append([record['protocol'], *setup, describe_score_name(name), format_value(score)])
    headers = ['protocol', *names, 'score', 'value']
    table = markdown_table(headers, rows, [*['left'] * (len(headers) - 1), 'right'])
    return f'The first score of every protocol; fractions are in percent:\n\n{table}'
