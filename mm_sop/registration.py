"""Registers the components of MM-SOP, at once or as soon as OpenMMLab is used.

``import mm_sop`` has to register everything: configs name it in ``custom_imports``, and programs import it before they
build a model. Python runs the same ``mm_sop/__init__.py`` for ``import mm_sop.functional``, which must not cost more
than torch. So it depends on the program:

- Where MMEngine is loaded, as whenever a config is read, all components are imported at once.
- Elsewhere a finder waits until MMEngine, MMPretrain and MMDetection are imported. It adds :mod:`mm_sop.components` to
  the locations that their registries import at the first lookup, and makes the changes that :mod:`mm_sop.compat` lists
  as those of an import.
"""

import sys
from collections.abc import Callable, Sequence
from copy import copy
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_COMPONENTS = 'mm_sop.components'


def register() -> None:
    """Import all components if MMEngine is loaded, else have its registries import them.

    Does nothing without MMPretrain, whose classes the components extend.
    """
    if find_spec('mmpretrain') is None:
        return
    if 'mmengine' in sys.modules:
        import_module(_COMPONENTS)
    else:
        sys.meta_path.insert(0, _Finder())


def _add_location(module: ModuleType) -> None:
    registry_class = import_module('mmengine.registry').Registry
    for registry in vars(module).values():
        if isinstance(registry, registry_class) and _COMPONENTS not in registry._locations:
            # Locations can be given to the constructor alone. First, because it prepares the import of the others.
            registry._locations.insert(0, _COMPONENTS)


def _prepare_mmengine(_: ModuleType) -> None:
    compat = import_module('mm_sop.compat')
    compat.define_torchvision_operators()
    compat.announce_configs()


_PREPARATIONS: dict[str, Callable[[ModuleType], None]] = {
    'mmengine': _prepare_mmengine,
    'mmengine.registry': _add_location,
    'mmpretrain.registry': _add_location,
    'mmdet.registry': _add_location,
    'mmpretrain.utils.dependency': lambda _: import_module('mm_sop.compat').leave_out_multimodal_models(),
}


class _Finder(MetaPathFinder):
    """Finds the modules of :data:`_PREPARATIONS` as usual, and prepares them after they have been run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _PREPARATIONS:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None and spec.loader is not None:
            # A copy, as a loader may belong to several modules.
            loader = spec.loader = copy(spec.loader)
            execute, prepare = loader.exec_module, _PREPARATIONS[fullname]

            def exec_module(module: ModuleType) -> None:
                execute(module)
                prepare(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]  # of this copy only
        return spec
