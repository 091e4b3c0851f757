"""Self-supervised visual pretraining for MMEngine, MMPretrain and MMDetection.

``import mm_sop`` makes every component available in the registries of MMEngine and MMPretrain, see
:mod:`mm_sop.registration`. :mod:`mm_sop.functional` needs nothing but torch, and importing it loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm_sop.encoders.encoder import load

__version__ = '0.1.0'
__all__ = ['load']

_SUBPACKAGES = (
    'apps', 'compat', 'components', 'datasets', 'demo', 'encoders', 'engine', 'evaluation', 'export', 'functional',
    'models', 'report', 'utils',
)  # fmt: skip


def __getattr__(name: str):
    if name == 'load':
        import_module('mm_sop.components')
        return import_module('mm_sop.encoders.encoder').load
    if name in _SUBPACKAGES:
        return import_module(f'mm_sop.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


import_module('mm_sop.registration').register()
