"""Generate composite sets: in parallel, deterministically, and atomically; finished sets are reused."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from mm_sop.demo.assets import Assets, fingerprint, read_asset_list
from mm_sop.demo.classification import BackgroundsSet, ClassesSet, PretrainSet
from mm_sop.demo.copies import CopiesSet
from mm_sop.demo.retrieval import RetrievalSet
from mm_sop.demo.scenes import ScenesSet, SegmentationSet
from mm_sop.demo.sets import CompositeSet, CompositeSettings, write_json
from mm_sop.demo.video import VideoSet
from mm_sop.utils.failures import UserError
from mm_sop.utils.files import make_folder_atomically

GENERATOR_VERSION = 1
MANIFEST = 'manifest.json'
SETS: dict[str, type[CompositeSet]] = {
    cls.name: cls
    for cls in (PretrainSet, ClassesSet, ScenesSet, SegmentationSet, RetrievalSet, CopiesSet, VideoSet, BackgroundsSet)
}


class ExistingSetError(UserError, FileExistsError):
    """The output folder exists and holds a set with other settings, or something else."""


def generate_composites(
    out: str | Path,
    assets: str | Path,
    settings: CompositeSettings | None = None,
    only: Iterable[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, dict]:
    """Generate composite sets below a folder, each in ``out/NAME``.

    The same settings and assets give the same bytes for any number of workers. A finished set with the same settings
    is left unchanged. A set appears under its name only when it is complete.

    Args:
        out (str | Path): Output folder.
        assets (str | Path): Asset folder, see :func:`build_assets`.
        settings (CompositeSettings | None): Sizes and counts. Defaults to None, the default settings.
        only (Iterable[str] | None): Names of the sets to generate. Defaults to None, all of them.
        workers (int | None): Number of processes. Defaults to None, one per available core.
        progress (bool): Whether to show a progress bar.

    Returns:
        dict[str, dict]: Manifest of every requested set.

    Raises:
        ExistingSetError: If a set exists with other settings.
        ValueError: If a name or number is unknown or out of range.
    """
    out, settings = Path(out), settings or CompositeSettings()
    names = list(SETS) if only is None else list(dict.fromkeys(only))
    unknown = set(names) - set(SETS)
    if unknown or not names:
        raise ValueError(f'unknown sets {sorted(unknown)}; choose from {", ".join(SETS)}')
    if workers is not None and workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    digest = fingerprint(read_asset_list(assets))
    expected: dict[str, dict] = {}
    manifests: dict[str, Any] = {}
    for name in names:
        used = SETS[name].used_settings(settings)
        expected[name] = dict(set=name, generator_version=GENERATOR_VERSION, settings=used, assets=digest)
        manifests[name] = read_finished(out / name, expected[name])
    missing = [name for name in names if manifests[name] is None]
    if missing:
        loaded = Assets.load(assets)
        workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
        for name in missing:
            manifests[name] = _generate_set(SETS[name](settings, loaded), expected[name], out, workers, progress)
    return manifests


def read_finished(folder: Path, expected: dict) -> dict | None:
    """Read the manifest of a finished set, which must hold the expected values; None if the folder does not exist.

    Raises:
        ExistingSetError: If the folder holds anything but the expected set.
    """
    if not folder.exists():
        return None
    advice = 'Remove or rename it to generate it again, or choose another output folder (--out).'
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        raise ExistingSetError(f'{folder} exists but is not a finished composite set. {advice}') from None
    found = _flatten(manifest)
    wanted = {key: value for key, value in _flatten(expected).items() if found.get(key) != value}
    differing = [f'{key} {found.get(key)!r} instead of {value!r}' for key, value in wanted.items()]
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
        records = _render_all(composite_set, folder, workers, progress)
        manifest = dict(
            identity,
            counts=composite_set.finish(records, folder),
            classes=composite_set.assets.classes,
            split={name: split.names() for name, split in composite_set.splits.items()},
            licenses=composite_set.assets.licenses,
        )
        write_json(folder / MANIFEST, manifest)
    return manifest


def _render_all(composite_set: CompositeSet, folder: Path, workers: int, progress: bool) -> list[dict]:
    count, records = len(composite_set), []
    size = max(min(count // (workers * 8), 200), 1)
    chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    if progress:
        print(f'{composite_set.name}: {count} items, {workers} processes', flush=True)
        from mmengine.utils import ProgressBar

        bar = ProgressBar(count, bar_width=30, file=sys.stdout)
    # Forked workers share the decoded assets with this process.
    context = multiprocessing.get_context('fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn')
    with context.Pool(workers, _start_worker, (composite_set, folder)) if workers > 1 else nullcontext() as pool:
        render = partial(_render_chunk, task=None if pool else (composite_set, folder))
        for rendered in pool.imap(render, chunks) if pool else map(render, chunks):
            records += rendered
            if progress:
                bar.update(len(rendered))
        if pool:
            # Idle workers exit by themselves; terminating one that holds the lock of the queue would block the others.
            pool.close()
            pool.join()
    if progress:
        print(flush=True)
    return records


# Set once per worker process, so that the assets are not sent with every chunk.
_worker_task: tuple[CompositeSet, Path]


def _start_worker(composite_set: CompositeSet, folder: Path) -> None:
    global _worker_task
    cv2.setNumThreads(0)
    # Not the handler of the parent process, which cleans up.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _worker_task = composite_set, folder


def _render_chunk(indices: range, task: tuple[CompositeSet, Path] | None) -> list[dict]:
    composite_set, folder = task or _worker_task
    return [composite_set.render(index, folder) for index in indices]
