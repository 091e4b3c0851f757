"""Reads configs that come with a checkpoint or work directory without running them, and checks what is built of them.

They may come from anywhere, unlike the configs that the user names: only known components may be built from them. In
all functions, ``source`` says where a config comes from, for messages.
"""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from mmengine.config import Config
from mmengine.config.config import RESERVED_KEYS
from mmengine.registry import Registry

from mm_sop.encoders.checkpoint import WeightsError

SCOPES = ('mmpretrain', 'mmdet', 'mmengine')
"""Packages whose registries may be asked; any other scope makes MMEngine import a package of that name."""

_DATA = ('DATASETS', 'TRANSFORMS')
_REGISTRIES = dict(model=('MODELS', 'TASK_UTILS', 'BATCH_AUGMENTS'), data=_DATA, unread=_DATA)
# MMDetection and MMCV look these names up outside of registries, some by `eval` and `getattr`.
_OPERATORS = (
    'nms', 'soft_nms', 'nms_match', 'nms_rotated', 'nms_quadri', 'conv', 'last_conv', 'interpolation_conv',
    'dilation', 'offset', 'RoIAlign', 'RoIPool', 'SimpleRoIAlign', 'RoIAlignRotated', 'RiRoIAlignRotated',
    'DeformRoIPool', 'DeformRoIPoolPack', 'ModulatedDeformRoIPool', 'ModulatedDeformRoIPoolPack', 'PrRoIPool',
)  # fmt: skip
# Their constructors read, unpickle or download files, or look up names that no registry holds.
_REFUSED = (
    'HuggingFaceClassifier', 'CLIPGenerator', 'VQAGenerationHead', 'ImageToImageRetriever', 'BertModel', 'GLIP',
    'KnowledgeDistillationSingleStageDetector', 'LAD', 'Detectron2Wrapper', 'ATSSVLFusionHead', 'GroundingDINO',
    'AppearanceFreeLink', 'CameraMotionCompensation', 'Albu', 'AlbuKeypoint', 'Albumentations', 'InstaBoost',
    'ImageAug', 'RandomSamplingNegPos', 'torchvision/Lambda', 'RefCoco', 'RefCocoDataset',
    'MDETRStyleRefCocoDataset', 'InferencerLoader',
)  # fmt: skip
_REFUSED_MODULES = ('mmpretrain.models.multimodal', 'mmpretrain.models.utils.huggingface')
# All weights come from the checkpoint itself.
_DROPPED = ('init_cfg', 'pretrained', 'checkpoint', 'checkpoint_path')
_FILE_KEY = re.compile(r'(path|file|ckpt|checkpoint|pretrained|url|dir|config)$', re.IGNORECASE)
# MMEngine's readers of these formats run code.
_PROGRAMS = ('.pkl', '.pickle', '.p', '.yaml', '.yml', '.py', '.pth', '.pt')
# Anything else would leave its quotes when the config is written as Python.
_KEY = re.compile(r'[\w.\-/ ]*')
_SCALARS = (str, int, float, type(None))


def stored_config(
    checkpoint: object, source: str, sections: tuple[str, ...] = ('backbone',), trusted: bool = False
) -> Config:
    """Read the config that MMEngine wrote into a checkpoint.

    It is Python, and :class:`mmengine.config.Config` would run it. This reader knows only assignments of literals,
    lists, tuples and ``dict(...)``, which is all that MMEngine writes; others are left out.

    Args:
        checkpoint: Content of the file.
        sections: What is going to be built, see :func:`check_config`. Other sections are not checked.
        trusted: Whether the config may name any Python object.

    Raises:
        WeightsError: The checkpoint has none that describes a model, or one that is not allowed.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    values = _parse(text, source) if isinstance(text, str) else {}
    model = values.get('model')
    if not isinstance(model, dict) or not isinstance(model.get('backbone'), dict):
        raise WeightsError(
            f'{source} does not say what network it holds: give the config of the run (--config), or the library that '
            'it comes from (--from)'
        )
    config = Config(values)
    return config if trusted else check_config(config, source, *sections)


def read_stored_config(path: Path) -> Config:
    """Read the config file in a run's work directory. Nothing in it is checked: see :func:`check_config`.

    Raises:
        WeightsError: It is not a config.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f'{path} is damaged, it is not text: {error}') from error
    return Config(_parse(text, str(path)))


def _parse(text: str, source: str) -> dict:
    try:
        values = parse_assignments(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise WeightsError(f'the config in {source} is damaged: {error}') from error
    return {name: value for name, value in values.items() if name not in RESERVED_KEYS}


def parse_assignments(text: str) -> dict:
    """Return the values of the literal assignments in Python source, by name."""
    values = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                values[statement.targets[0].id] = _evaluate(statement.value)
            except (ValueError, TypeError):
                continue
    return values


def _evaluate(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _evaluate(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [_evaluate(key) for key in node.keys]
        return dict(zip(keys, map(_evaluate, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):
        return (list if isinstance(node, ast.List) else tuple)(_evaluate(item) for item in node.elts)
    if node is None:
        raise ValueError('** within braces is not a literal')
    return ast.literal_eval(node)


def check_config(config: Config, source: str, *sections: str) -> Config:
    """Check the sections of a config that are going to be built; see :func:`check_untrusted`.

    Args:
        config: A config that was read from ``source`` without running it.
        *sections: Among ``'backbone'``, built in MMPretrain's scope; ``'model'``, ``'data_preprocessor'``;
            ``'train_dataloader'`` (its dataset); ``'test_dataloader'`` (type, classes and pipeline of its dataset);
            ``'custom_hooks'`` (their datasets). Other sections are not checked: do not build them.

    Returns:
        A copy with the checked sections.

    Raises:
        WeightsError: A section is not allowed.
    """
    values = config.to_dict()
    scope = values.get('default_scope') or 'mmpretrain'
    if scope not in SCOPES:
        _refuse(source, 'default_scope', scope, f'expected one of {", ".join(SCOPES)}')
    values.pop('custom_imports', None)
    for name in sections:
        if name == 'backbone':
            model = values['model']
            model[name] = check_untrusted(model[name], source, 'model', 'mmpretrain', 'model.backbone')
        elif name in ('model', 'data_preprocessor') and values.get(name) is not None:
            values[name] = check_untrusted(values[name], source, 'model', scope, name)
        elif name not in ('model', 'data_preprocessor'):
            kind = 'unread' if name == 'test_dataloader' else 'data'
            for owner in values.get(name) or () if name == 'custom_hooks' else [values.get(name) or {}]:
                for key in {'dataset', 'bank', 'queries'}.intersection(owner):
                    owner[key] = check_untrusted(owner[key], source, kind, scope, f'{name}.{key}')
    return Config(values)


def check_untrusted(
    settings: object, source: str, kind: str = 'model', scope: str = 'mmpretrain', place: str = 'model'
) -> dict:
    """Refuse settings that could do more than describe a network or a dataset.

    MMEngine resolves any dotted Python name as a ``type`` and calls it. Here a ``type`` must be a registered class that
    neither reads files nor downloads; references to files and addresses are dropped or refused.

    Args:
        settings: Nested settings.
        kind: ``'model'``, ``'data'``, or ``'unread'`` for a dataset of which only the pipeline is built.
        scope: Registries in which names without a scope are looked up, one of :data:`SCOPES`.
        place: Dotted name of the settings, for messages.

    Returns:
        A copy. That of a model lacks the settings that only initialize weights.

    Raises:
        WeightsError: A setting is not allowed; the message names it.
    """
    if not isinstance(settings, Mapping):
        _refuse(source, place, settings, 'expected a dictionary')
    try:
        return _check(settings, source, kind, scope, place)
    except RecursionError as error:
        raise WeightsError(f'the config in {source} is nested too deeply') from error


def build_untrusted(registry: Registry, settings: dict, source: str):
    """Build checked settings; errors of their constructors become a :class:`WeightsError`."""
    try:
        return registry.build(settings)
    except Exception as error:  # constructors raise almost anything on arguments that they do not know
        reason, kind = (str(error).strip() or type(error).__name__).splitlines()[0], settings.get('type')
        raise WeightsError(f'the config in {source} describes no {kind} that can be built: {reason}') from error


def _check(value, source: str, kind: str, scope: str, place: str):
    if isinstance(value, Mapping):
        return _check_mapping(value, source, kind, scope, place)
    if isinstance(value, (list, tuple)):
        return type(value)(_check(item, source, kind, scope, f'{place}.{i}') for i, item in enumerate(value))
    if not isinstance(value, _SCALARS):
        _refuse(source, place, value, 'expected text, numbers, lists and dictionaries')
    if isinstance(value, str) and ('://' in value or '{{' in value):
        _refuse(source, place, value, 'addresses and templates are not followed')
    if isinstance(value, str) and kind == 'data' and PurePosixPath(value).suffix.lower() in _PROGRAMS:
        _refuse(source, place, value, 'reading it could run code')
    return value


def _check_mapping(settings: Mapping, source: str, kind: str, scope: str, place: str) -> dict:
    scope = settings.get('_scope_', scope)
    if scope not in SCOPES:
        _refuse(source, f'{place}._scope_', scope, f'expected one of {", ".join(SCOPES)}')
    checked = {}
    # The type first: an error about it says most.
    for key, value in sorted(settings.items(), key=lambda item: item[0] != 'type'):
        inner = f'{place}.{key}'
        if not isinstance(key, int) and not (isinstance(key, str) and _KEY.fullmatch(key)):
            _refuse(source, place, key, 'expected plain names as keys')
        if kind == 'model' and key in _DROPPED:
            continue
        if key == 'type' or (key == 'norm_layer' and isinstance(value, str)):
            _check_type(value, source, kind, scope, inner)
            checked[key] = value
            continue
        _check_reference(key, value, source, kind, inner)
        checked[key] = _check(value, source, 'data' if key == 'pipeline' else kind, scope, inner)
    return checked


def _check_type(name, source: str, kind: str, scope: str, place: str) -> None:
    if not isinstance(name, str):
        _refuse(source, place, name, 'expected a name')
    if kind == 'model' and name in _OPERATORS:
        return
    found = _find(name, kind, scope, source)
    if found is None:
        _refuse(source, place, name, 'no registry has a class of this name')
    names = {name.rpartition('.')[2], getattr(found, '__name__', '')}
    if names.intersection(_REFUSED) or getattr(found, '__module__', '').startswith(_REFUSED_MODULES):
        _refuse(source, place, name, 'it reads or downloads files when it is built')


def _find(name: str, kind: str, scope: str, source: str) -> Callable | None:
    """Find the registered class that MMEngine finds by a name, without its search for Python objects."""
    given, _, short = name.rpartition('.')
    for each in (given,) if given else (scope, 'mmengine'):
        for attribute in _REGISTRIES[kind] if each in SCOPES else ():
            registry = getattr(import_module(f'{each}.registry'), attribute, None)
            if registry is None:
                continue
            try:
                registry.import_from_location()
            except ImportError as error:
                raise WeightsError(f'{source} needs {each}, which cannot be imported: {error}') from error
            found = registry.module_dict.get(short)
            # What a function builds is not known, except for MMPretrain's wrappers of torchvision's classes.
            if inspect.isclass(found) or (found and short.startswith('torchvision/')):
                return found
    return None


def _check_reference(key: str | int, value, source: str, kind: str, place: str) -> None:
    """Refuse what makes a constructor read, fetch or evaluate something."""
    is_local = not value or (isinstance(value, Mapping) and value.get('backend') in ('local', 'disk'))
    if key in ('backend_args', 'file_client_args') and not is_local:
        _refuse(source, place, value, 'files are read from this machine only')
    if not isinstance(value, str):
        return
    if kind == 'model' and _FILE_KEY.search(str(key)):
        _refuse(source, place, value, 'a model is built without reading files')
    if str(key).endswith(('dtype', 'model_name')) and not re.fullmatch(r'[\w.\-]+', value):
        _refuse(source, place, value, 'expected a plain name')


def _refuse(source: str, place: str, value, reason: str) -> None:
    shown = repr(value) if len(repr(value)) <= 80 else f'{repr(value)[:77]}...'
    raise WeightsError(
        f'the config in {source} is not used: {place} = {shown}: {reason}. It comes with the file, and could run code. '
        'If you trust it, give the config of the run yourself (--config), or add --trust'
    )
