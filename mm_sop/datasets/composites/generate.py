"""Generating composite sets: parallel, deterministic, all or nothing, and reused when they are there already."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import cv2
from mmengine.utils import ProgressBar

from mm_sop.engine.atomic import make_folder_atomically

from .assets import Assets, fingerprint, read_listing
from .classification import BackgroundsSet, ClassesSet, PretrainSet
from .copies import CopiesSet
from .retrieval import RetrievalSet
from .scenes import ScenesSet, SegmentationSet
from .sets import CompositeSet, CompositeSettings, write_json
from .video import VideoSet

GENERATOR_VERSION = 1
MANIFEST = 'manifest.json'
SETS: dict[str, type[CompositeSet]] = {
    cls.name: cls
    for cls in (
        PretrainSet,
        ClassesSet,
        ScenesSet,
        SegmentationSet,
        RetrievalSet,
        CopiesSet,
        VideoSet,
        BackgroundsSet,
    )
}


class ExistingSetError(FileExistsError):
    """A folder in the way: a set of other settings, or something that is no set."""


def generate_composites(
    out: str | Path,
    assets: str | Path,
    settings: CompositeSettings | None = None,
    only: Iterable[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, dict]:
    """Generate composite sets below a folder, each in ``out/NAME``.

    The same settings and assets give the same bytes whatever the number of workers. A finished set with the same
    settings is left as it is. A set appears under its name only when it is complete.

    Args:
        out (str | Path): Where the sets go.
        assets (str | Path): An asset folder, see :func:`build_assets`.
        settings (CompositeSettings | None): Sizes and counts. Defaults to None, the default settings.
        only (Iterable[str] | None): Names of the sets to generate. Defaults to None, all of them.
        workers (int | None): Number of processes. Defaults to None, one per available core.
        progress (bool): Show a progress bar. Defaults to True.

    Returns:
        dict[str, dict]: The manifest of every set asked for.

    Raises:
        ExistingSetError: If a set is there with other settings.
        ValueError: If a name or number is unknown or out of range.
    """
    out, settings = Path(out), settings or CompositeSettings()
    names = list(SETS) if only is None else list(dict.fromkeys(only))
    _check_arguments(names, workers)
    digest = fingerprint(read_listing(assets))
    expected = {name: _identity(SETS[name], settings, digest) for name in names}
    manifests = {name: read_finished(out / name, expected[name]) for name in names}
    missing = [name for name in names if manifests[name] is None]
    loaded = Assets.load(assets) if missing else None
    for name in missing:
        composite_set = SETS[name](settings, loaded)
        manifests[name] = _generate_set(composite_set, expected[name], out, workers or available_cores(), progress)
    return {name: manifests[name] for name in names}


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _check_arguments(names: list[str], workers: int | None) -> None:
    unknown = set(names) - set(SETS)
    if unknown or not names:
        raise ValueError(f'unknown sets {sorted(unknown)}; choose from {", ".join(SETS)}')
    if workers is not None and workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')


def _identity(set_class: type[CompositeSet], settings: CompositeSettings, digest: str) -> dict:
    used = set_class.used_settings(settings)
    return dict(set=set_class.name, generator_version=GENERATOR_VERSION, settings=used, assets=digest)


def read_finished(folder: Path, expected: dict) -> dict | None:
    """The manifest of a finished set; None if there is nothing yet.

    Raises:
        ExistingSetError: If the folder holds anything but the set that is asked for.
    """
    if not folder.exists():
        return None
    advice = 'Remove or rename it to generate it again, or choose another output folder (--out).'
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        raise ExistingSetError(f'{folder} exists but is no finished composite set. {advice}') from None
    theirs, mine = _flatten(manifest), _flatten(expected)
    differing = [f'{key} {theirs.get(key)!r} instead of {mine[key]!r}' for key in mine if theirs.get(key) != mine[key]]
    if differing:
        raise ExistingSetError(f'{folder} was generated with {", ".join(differing)}. {advice}')
    return manifest


def _flatten(values: dict) -> dict:
    flat = {}
    for key, value in values.items():
        nested = _flatten(value) if isinstance(value, dict) else {}
        flat.update({f'{key}.{inner}': v for inner, v in nested.items()} or {key: value})
    return flat


def _generate_set(composite_set: CompositeSet, identity: dict, out: Path, workers: int, progress: bool) -> dict:
    with make_folder_atomically(out / composite_set.name) as folder:
        records = list(_render_all(composite_set, folder, workers, progress))
        counts = composite_set.finish(records, folder)
        manifest = dict(
            identity,
            counts=counts,
            classes=composite_set.assets.classes,
            split={name: split.names() for name, split in composite_set.splits.items()},
            licences=composite_set.assets.licences,
        )
        write_json(folder / MANIFEST, manifest)
    return manifest


def _render_all(composite_set: CompositeSet, folder: Path, workers: int, progress: bool) -> Iterator[dict]:
    count = len(composite_set)
    if progress:
        print(f'{composite_set.name}: {count} items, {workers} processes', flush=True)
        bar = ProgressBar(count, bar_width=30, file=sys.stdout)
    for chunk in _render_chunks(composite_set, folder, workers, max(min(count // (workers * 8), 200), 1)):
        yield from chunk
        if progress:
            bar.update(len(chunk))
    if progress:
        print(flush=True)


def _render_chunks(composite_set: CompositeSet, folder: Path, workers: int, size: int) -> Iterator[list[dict]]:
    chunks = [range(start, min(start + size, len(composite_set))) for start in range(0, len(composite_set), size)]
    if workers == 1:
        yield from map(partial(_render_chunk, composite_set, folder), chunks)
        return
    # Forked workers share the decoded assets with this process.
    method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn'
    with multiprocessing.get_context(method).Pool(workers, _start_worker, (composite_set, folder)) as pool:
        yield from pool.imap(_render_in_worker, chunks)
        # Idle workers leave by themselves; terminating one that holds the lock of the queue would block the others.
        pool.close()
        pool.join()


def _render_chunk(composite_set: CompositeSet, folder: Path, indices: range) -> list[dict]:
    return [composite_set.render(index, folder) for index in indices]


_worker_task: tuple[CompositeSet, Path]


def _start_worker(composite_set: CompositeSet, folder: Path) -> None:
    global _worker_task
    cv2.setNumThreads(0)
    # Not the handler of the parent, which cleans up.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _worker_task = composite_set, folder


def _render_in_worker(indices: range) -> list[dict]:
    return _render_chunk(*_worker_task, indices)
