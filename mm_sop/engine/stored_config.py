"""The config in a checkpoint, read without running it."""

import ast
from collections.abc import Mapping

from mmengine.config import Config

from mm_sop.engine.weights import WeightsError


def stored_config(checkpoint: object, source: str) -> Config:
    """The config that MMEngine wrote into a checkpoint.

    It is Python, and :class:`mmengine.config.Config` would run it. Here only assignments of literals, lists, tuples and
    ``dict(...)`` are understood, which is all that MMEngine writes; others are left out.

    Args:
        checkpoint: Content of the file.
        source: Where it comes from, for the message.

    Returns:
        The config.

    Raises:
        WeightsError: The checkpoint has none that describes a model.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    values = parse_assignments(text) if isinstance(text, str) else {}
    if 'backbone' not in (values.get('model') or {}):
        raise WeightsError(
            f'{source} does not say what network it holds: give the config of the run (--config), or the library that '
            'it comes from (--from)'
        )
    return Config(values)


def parse_assignments(text: str) -> dict:
    """Values of the literal assignments in Python source, by name.

    Args:
        text: The source.

    Raises:
        SyntaxError: It is no Python.
    """
    values = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                values[statement.targets[0].id] = _evaluate(statement.value)
            except ValueError:
                continue
    return values


def _evaluate(node: ast.expr):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _evaluate(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [_evaluate(key) for key in node.keys]
        return dict(zip(keys, map(_evaluate, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):
        return (list if isinstance(node, ast.List) else tuple)(_evaluate(item) for item in node.elts)
    return ast.literal_eval(node)
