"""The settings of a run in short."""

import torch
from mmengine.config import Config
from torch import nn

import mm_sop
from mm_sop.visualization.charts import Curve


def describe_settings(config: Config, model: nn.Module | None, scalars: dict[str, Curve]) -> dict[str, str]:
    """The settings that matter most, as text by name; those that a config lacks are left out."""
    settings = config.get('model', {})
    backbone = settings.get('backbone', {})
    loader = config.get('train_dataloader') or {}
    optimizer = config.get('optim_wrapper', {}).get('optimizer', {})
    steps = next((steps for name, (steps, _) in scalars.items() if name == 'loss'), [])
    rows = {
        'algorithm': settings.get('type'),
        'backbone': _describe_backbone(backbone),
        'trained parameters': f'{sum(p.numel() for p in model.parameters() if p.requires_grad):,}' if model else None,
        'pictures': _find(loader, 'data_root'),
        'pictures per process and step': loader.get('batch_size'),
        'iterations': f'{steps[-1]:,}' if steps else None,
        'optimiser': ' '.join(f'{key}={value}' for key, value in optimizer.items()),
        'precision': config.get('optim_wrapper', {}).get('dtype'),
        'seed': config.get('randomness', {}).get('seed'),
        'versions': f'mm-sop {mm_sop.__version__}, torch {torch.__version__}',
    }
    rows.update(_describe_prototypes(settings))
    return {name: str(value) for name, value in rows.items() if value not in (None, '')}


def _describe_backbone(backbone: dict) -> str:
    arch = backbone.get('arch', backbone.get('depth', ''))
    if isinstance(arch, dict):
        arch = ', '.join(f'{key}={value}' for key, value in arch.items())
    return f'{backbone.get("type", "")} {arch}'.strip()


def _describe_prototypes(settings: dict) -> dict[str, str]:
    rows = {}
    for owner, title in (('head', '[CLS] prototypes'), ('target_generator', 'patch prototypes')):
        prototypes = (settings.get(owner) or {}).get('prototypes')
        if prototypes:
            values = [
                f'{key}={value}' for key, value in prototypes.items() if not isinstance(value, dict) and key != 'type'
            ]
            rows[title] = ', '.join([*values, f'bank={prototypes["bank"].get("size")}'])
    return rows


def _find(settings, key: str):
    """First value of a key in nested settings."""
    if not isinstance(settings, dict):
        return None
    if key in settings:
        return settings[key]
    return next((value for part in settings.values() if (value := _find(part, key)) is not None), None)
