"""The examples of CONTRIBUTING.md work."""

import re
import sys
from importlib import util

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from testing.evaluation_encoders import make_context, write_classes
from testing.siamese_models import VIT, mlp, objective, views

from mm_sop.evaluation.context import PROTOCOLS, build_protocol


@pytest.fixture(scope='module')
def examples(repository):
    """Code blocks of CONTRIBUTING.md by the file that they belong to."""
    text = (repository / 'CONTRIBUTING.md').read_text()
    return dict(re.findall(r'```python\n# (\S+\.py)\n(.*?)```', text, re.S))


@pytest.fixture(scope='module', autouse=True)
def modules(examples, tmp_path_factory):
    """Import the modules of the package, and register nothing beyond these tests."""
    folder = tmp_path_factory.mktemp('examples')
    registered = {registry: set(registry.module_dict) for registry in (MODELS, PROTOCOLS)}
    for name, code in examples.items():
        if not name.startswith('mm_sop/'):
            continue
        path = folder / name.rpartition('/')[2]
        path.write_text(code)
        specification = util.spec_from_file_location(f'contributing_{path.stem}', path)
        module = sys.modules[specification.name] = util.module_from_spec(specification)
        specification.loader.exec_module(module)
    yield
    for registry, names in registered.items():
        for name in set(registry.module_dict) - names:
            del registry.module_dict[name]


def test_every_example_is_here(examples):
    assert [name.rpartition('/')[2] for name in examples] == [
        'align_uniform_head.py',
        'align_uniform.py',
        'align-uniform_r18_composites.py',
        'class_means.py',
    ]


def test_method_learns():
    torch.manual_seed(0)
    model = MODELS.build(dict(type='AlignUniform', backbone=VIT, neck=mlp(16), head=dict(type='AlignUniformHead')))
    optimizer = build_optim_wrapper(model, dict(optimizer=dict(type='AdamW', lr=1e-3)))
    losses = []
    for _ in range(40):
        loss = objective(model.loss(views(8)))
        optimizer.update_params(loss)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


def test_head_against_a_plain_loop():
    predictions, targets = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    loss = MODELS.build(dict(type='AlignUniformHead', uniform_weight=0.5)).pair_loss(predictions, targets)
    rows = [row / row.norm() for row in predictions.double()]
    alignment = sum((row - target / target.norm()).norm() ** 2 for row, target in zip(rows, targets, strict=True)) / 5
    pairs = [(rows[i] - rows[j]).norm() ** 2 for i in range(5) for j in range(i)]
    expected = alignment + 0.5 * torch.log(sum(torch.exp(-2 * pair) for pair in pairs) / len(pairs))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_config(examples, repository, tmp_path):
    code = examples['configs/align_uniform/align-uniform_r18_composites.py']
    (tmp_path / 'example.py').write_text(code.replace("'../", f"'{repository}/configs/"))
    config = Config.fromfile(tmp_path / 'example.py')
    assert config.model.head == dict(type='AlignUniformHead', uniform_weight=0.5)
    assert type(MODELS.build(config.model)).__name__ == 'AlignUniform'


def test_protocol(tmp_path):
    write_classes(tmp_path / 'data/classes/bank', 4)
    write_classes(tmp_path / 'data/classes/seen', 2, seed=1)
    context = make_context(tmp_path / 'data', tmp_path / 'work')
    protocol = build_protocol('class_means', dict(readout='patch'))
    result = protocol.run(context, protocol.find_data(context))
    assert result.card == dict(classes=3)
    assert 0.5 < result.scores['accuracy'].value <= 1
