"""Compilation and activation checkpointing block by block."""

from mmengine.runner import Runner

from mm_sop.engine.utils import match_modules, unwrap_model


def compile_blocks(runner: Runner, options: dict | bool | None) -> int:
    """Compile the blocks of student and teacher in place, for static shapes.

    One block is compiled once for each size of crop, which takes a fraction of the time of compiling a whole model.
    Names in the state dict stay as they are.

    Args:
        runner: Runner with its model built.
        options: ``pattern`` of module names, ``backbone.layers.*`` unless given, and arguments of
            :func:`torch.compile`, e.g. ``dict(mode='max-autotune')``; True for the defaults, None or False for nothing.

    Returns:
        Number of compiled blocks.

    Raises:
        ValueError: No module fits the pattern.
    """
    if not options:
        return 0
    options = {} if options is True else dict(options)
    pattern = options.pop('pattern', 'backbone.layers.*')
    options.setdefault('dynamic', False)
    model = unwrap_model(runner.model)
    blocks = [*match_modules(model, pattern), *match_modules(model, f'teacher.{pattern}')]
    _check_found(blocks, 'compile_blocks.pattern', pattern)
    for _, block in blocks:
        block.compile(**options)
    runner.logger.info(f'Compiling {len(blocks)} blocks; the first iterations are slow.')
    return len(blocks)


def expand_checkpointed(runner: Runner) -> None:
    """Replace patterns in the config's ``activation_checkpointing`` by the names of the modules that fit.

    MMEngine then recomputes the activations of these modules in the backward pass instead of keeping them.

    Args:
        runner: Runner with its model built.

    Raises:
        ValueError: No module fits a pattern.
    """
    patterns = runner.cfg.get('activation_checkpointing')
    if not patterns:
        return
    names = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [name for name, _ in match_modules(unwrap_model(runner.model), pattern)]
        _check_found(found, 'activation_checkpointing', pattern)
        names += found
    runner.cfg.activation_checkpointing = names


def _check_found(found: list, key: str, pattern: str) -> None:
    if not found:
        raise ValueError(f'{key}: no module of the model is called {pattern!r}')
