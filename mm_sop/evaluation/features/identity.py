"""Identity of datasets and files: descriptions and hashes that are part of cache keys and of protocol cards."""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from mmengine.dataset import BaseDataset

from mm_sop.datasets.semantic_pairs import describe_data, image_info
from mm_sop.datasets.shards import parse_member
from mm_sop.evaluation.labeled_data import read_labels
from mm_sop.utils.files import hash_file

# Larger compressed files hardly ever keep their size when they change.
_COMPRESSED = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.gz', '.tgz', '.zip')
_SMALL_FILE = 2**14


def content_key(definition: object) -> str:
    """Short hash of a JSON-serializable description."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True, default=str).encode()).hexdigest()[:16]


def describe_source(source: BaseDataset | str | Path) -> dict:
    """Describe a dataset by its images, labels and identities, or a file or folder by names and content.

    Content is what :func:`describe_file` gives. A file list ``<folder>.json`` beside a folder is part of it.
    """
    if not isinstance(source, str | Path):
        labels = {kind: read_labels(source, kind) for kind in ('class', 'identity')}
        hashes = {
            kind: None if each is None else content_key(dict(labels=each.tolist())) for kind, each in labels.items()
        }
        return dict(describe_images(source), labels=hashes['class'], identities=hashes['identity'])
    path = Path(source)
    files = [path] if path.is_file() else sorted(file for file in path.rglob('*') if file.is_file())
    file_list = Path(f'{os.path.normpath(path)}.json')
    files += [file_list] if file_list.is_file() else []
    described = [(os.path.relpath(file, path), describe_file(file)) for file in files]
    return dict(name=path.name, num_files=len(files), sha256=content_key(dict(files=described)))


def describe_images(dataset: BaseDataset) -> dict:
    """Describe the images of a dataset by names and content, as different datasets may use the same names.

    Returns:
        Description by :func:`describe_data`; for files with ``content``, a hash over :func:`describe_file`.
    """
    description = describe_data(dataset)
    if description['kind'] == 'paths':
        paths = (image_info(dataset, index)['img_path'] for index in range(len(dataset)))
        description['content'] = content_key(dict(files=[describe_file(path) for path in paths]))
    return description


def describe_file(path: str | Path) -> int | str:
    """Fingerprint of a file: its size in bytes if it is large and compressed, else its hash.

    Unlike modification times, both are equal for all copies of a dataset, and on all machines. The only change that
    goes unnoticed is that of a large compressed file that keeps its size. A file that does not exist or is not regular
    gives -1; it is reported on loading. Images in shards count by their size.
    """
    if member := parse_member(str(path)):
        return member.size
    path = Path(path)
    if not path.is_file():
        return -1
    status = path.stat()
    if status.st_size > _SMALL_FILE and path.name.lower().endswith(_COMPRESSED):
        return status.st_size
    return _hash_once(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**18)
def _hash_once(path: str, size: int, modified: int) -> str:
    """Hash a file; this process reads it again only if its size or modification time has changed."""
    return hash_file(path)
