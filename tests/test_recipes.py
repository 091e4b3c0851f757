"""Numbers of the configs against those of the publications and of the specification of each method."""

import pytest
from mmengine.config import Config

SMALL = dict(weight_decay=5e-4, hidden=512)
MOCO_VIEW = dict(crop=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), gray=0.2)
SIMCLR_VIEW = dict(crop=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), gray=0.2)
BYOL_HEAD = dict(hidden=4096, out=256, teacher=(0.99, 1.0), warmup=10)
DINO_HEAD = dict(hidden=2048, warmup=10, teacher=(0.996, 1.0), epochs=100)

RECIPES = {
    'mocov2/mocov2_r50_in1k': dict(
        MOCO_VIEW, lr=0.03, weight_decay=1e-4, epochs=200, batch=256, queue=65536, key=0.999, tau=0.2, out=128, blur=0.5
    ),
    'mocov2/mocov2_r18_stl10': dict(
        MOCO_VIEW, **SMALL, lr=0.06, epochs=400, batch=256, queue=16384, key=0.999, tau=0.2, blur=0.5
    ),
    'mocov2/mocov2_r18_cifar10': dict(
        MOCO_VIEW, **SMALL, lr=0.06, epochs=800, batch=512, queue=4096, key=0.999, tau=0.1, blur=None
    ),
    'simsiam/simsiam_r50_in1k': dict(
        MOCO_VIEW, lr=0.05, weight_decay=1e-4, epochs=100, batch=256, layers=3, hidden=2048, predictor=512, blur=0.5
    ),
    'simsiam/simsiam_r18_stl10': dict(MOCO_VIEW, lr=0.05, weight_decay=5e-4, epochs=400, batch=256, layers=3, blur=0.5),
    'simsiam/simsiam_r18_cifar10': dict(
        MOCO_VIEW, **SMALL, lr=0.06, epochs=800, batch=512, layers=3, predictor=128, blur=None
    ),
    'simclr/simclr_r50_in1k': dict(
        SIMCLR_VIEW, lr=1.2, weight_decay=1e-6, epochs=800, batch=1024, warmup=10, tau=0.1, out=128, blur=0.5
    ),
    'simclr/simclr_r18_stl10': dict(SIMCLR_VIEW, **SMALL, lr=0.06, epochs=400, batch=256, tau=0.2, blur=0.5),
    'simclr/simclr_r18_cifar10': dict(SIMCLR_VIEW, **SMALL, lr=0.06, epochs=800, batch=512, tau=0.5, blur=None),
    'co_ssl/co-byol_r50_in1k': dict(
        BYOL_HEAD, lr=0.45 * 16, weight_decay=1e-6, epochs=100, batch=4096, cells=49, weight=0.3, crop=(0.08, 1.0)
    ),
    'co_ssl/co-byol_r50_in100': dict(
        BYOL_HEAD, lr=0.5, weight_decay=1e-6, epochs=400, batch=256, cells=49, weight=0.3, predictor=8192
    ),
    'co_ssl/co-byol_rf29-r18_tiny': dict(
        BYOL_HEAD, lr=1.0, weight_decay=1e-5, epochs=400, batch=256, cells=16, weight=0.3
    ),
    'co_ssl/moco-v3_r50_in1k': dict(BYOL_HEAD, lr=0.6 * 16, weight_decay=1e-6, epochs=100, batch=4096, tau=1.0),
    'co_ssl/co-dino_r50_in1k': dict(DINO_HEAD, cells=9, weight=0.3, weight_decay=1e-6),
    'dino/dino_r50': dict(DINO_HEAD, weight_decay=1e-6, teacher_tau=(0.04, 0.07)),
    'resa/resa_r18_in100': dict(
        lr=0.5, weight_decay=2.5e-5, epochs=400, batch=256, warmup=2, hidden=2048, out=512, tau=0.4, teacher=(0.996, 1)
    ),
}


def find(node, kind):
    """Configs of a type, however deep."""
    if isinstance(node, dict):
        found = [node] if kind in str(node.get('type')) else []
        return found + [each for value in node.values() for each in find(value, kind)]
    return [each for value in node for each in find(value, kind)] if isinstance(node, (list, tuple)) else []


def first(node, kind):
    return next(iter(find(node, kind)), {})


def measured(config, batch):
    """What a run with a global batch has, under the names of the table."""
    model, optimizer, pipeline = config.model, config.optim_wrapper.optimizer, config.train_dataloader.dataset
    scale = batch / config.auto_scale_lr.base_batch_size if config.auto_scale_lr.enable else 1
    jitter, hook = first(pipeline, 'ColorJitter'), first(config.custom_hooks, 'TeacherHook')
    temperature, local = first(config.custom_hooks, 'TemperatureHook'), model.get('local_head') or {}
    return dict(
        lr=round(scale * optimizer.lr, 9),
        weight_decay=optimizer.weight_decay,
        epochs=config.train_cfg.max_epochs,
        warmup=first(config.param_scheduler, 'LinearLR').get('end'),
        hidden=model.neck.hid_channels,
        out=model.neck.get('out_channels'),
        layers=model.neck.get('num_layers'),
        predictor=model.head.get('predictor', {}).get('hid_channels'),
        tau=model.head.get('temperature'),
        queue=model.get('queue_len'),
        key=round(1 - model.get('momentum', 0), 9),
        teacher=(hook.get('momentum'), hook.get('end_momentum')),
        teacher_tau=(temperature.get('start'), temperature.get('end')),
        cells=local.get('num_cells'),
        weight=local.get('weight'),
        crop=tuple(first(pipeline, 'ResizedCrop').get('crop_ratio_range')),
        jitter=tuple(jitter.get(name) for name in ('brightness', 'contrast', 'saturation', 'hue')),
        gray=first(pipeline, 'RandomGrayscale').get('prob'),
        blur=first(pipeline, 'GaussianBlur').get('prob'),
    )


@pytest.mark.parametrize('name', RECIPES)
def test_numbers_are_those_of_the_recipe(repository, name):
    expected = dict(RECIPES[name])
    found = measured(Config.fromfile(repository / f'configs/{name}.py'), expected.pop('batch', 256))
    assert {key: found[key] for key in expected} == expected
