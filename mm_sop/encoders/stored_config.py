"""Reads configs that runs have written into checkpoints and work directories, without running them."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.config import RESERVED_KEYS

from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.safe_config import check_config


def stored_config(
    checkpoint: object, source: str, sections: tuple[str, ...] = ('backbone',), trusted: bool = False
) -> Config:
    """Read the config that MMEngine wrote into a checkpoint.

    It is Python, and :class:`mmengine.config.Config` would run it. This reader knows only assignments of literals,
    lists, tuples and ``dict(...)``, which is all that MMEngine writes; others are left out.

    Args:
        checkpoint: Content of the file.
        source: Where it comes from, for the message.
        sections: What is going to be built, see :func:`check_config`. Other sections are not checked.
        trusted: Whether the config may name any Python object.

    Returns:
        The config.

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
    """Return the values of the literal assignments in Python source, by name.

    Raises:
        SyntaxError: It is not Python.
    """
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
