"""Readers of checkpoints for MMEngine, MMPretrain and MMDetection, once :func:`install` was called.

Their own readers unpickle a file without protection as soon as the protected way fails. These never do, whether the
file is named by ``load_from``, by a resumption, by ``init_cfg=dict(type='Pretrained')`` or by one of their tools.
"""

import re
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mm_sop.encoders.checkpoint import Device, WeightsError, read_checkpoint


def download(address: str) -> Path:
    """Fetch a file into PyTorch's cache, once.

    Args:
        address: ``http://...`` or ``https://...``.

    Raises:
        WeightsError: It cannot be fetched.
    """
    file, folder = Path(urlparse(address).path), Path(torch.hub.get_dir(), 'checkpoints')
    # Where PyTorch and MMEngine put it; the names of different files differ only if they end with a hash.
    path = folder / file.name
    if not re.fullmatch(r'.*[-_][0-9a-f]{8,}', file.stem):
        path = folder / f'{file.stem}-{sha256(address.encode()).hexdigest()[:8]}{file.suffix}'
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path))
        except (OSError, ValueError) as error:
            raise WeightsError(f'{address} cannot be downloaded: {error}') from error
    return path


def load_from_local(filename: str, map_location: Device = None):
    """Read a file."""
    return read_checkpoint(Path(filename).expanduser(), map_location=map_location).content


def load_from_http(filename: str, map_location: Device = None):
    """Download a file, on one process first, and read it."""
    if get_rank() == 0:
        download(filename)
    barrier()
    return load_from_local(str(download(filename)), map_location)


def load_from_backend(filename: str, map_location: Device = None):
    """Read a file from a storage that MMEngine knows."""
    with TemporaryDirectory() as folder:
        path = Path(folder, Path(filename).name)
        path.write_bytes(get(filename, backend_args=dict(backend='petrel')))
        return load_from_local(str(path), map_location)


def load_from_torchvision(filename: str, map_location: Device = None):
    """Read weights of torchvision by name."""
    return _load_named(mmengine_checkpoint.get_torchvision_models(), filename, map_location)


def load_from_openmmlab(filename: str, map_location: Device = None):
    """Read weights of OpenMMLab by name, including deprecated ones."""
    scheme, name = filename.split('://', 1)
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    return _load_named(mmengine_checkpoint.get_external_models(), f'{scheme}://{name}', map_location)


def load_from_mmcls(filename: str, map_location: Device = None):
    """Read the backbone of a classifier of MMClassification by name."""
    content = _load_named(mmengine_checkpoint.get_mmcls_models(), filename, map_location)
    return mmengine_checkpoint._process_mmcls_checkpoint(content)


def _load_named(addresses: dict[str, str], filename: str, map_location: Device):
    name = filename.split('://', 1)[1]
    if name not in addresses:
        raise WeightsError(f'{filename}: no weights of this name are known')
    address = addresses[name]
    if urlparse(address).scheme in ('http', 'https'):
        return load_from_http(address, map_location)
    return load_from_local(str(Path(mmengine_checkpoint._get_mmengine_home(), address)), map_location)


def load_from_pavi(filename: str, map_location: Device = None):
    """Read a checkpoint from PAVI."""
    from pavi import modelcloud

    model = modelcloud.get(filename.split('://', 1)[1])
    with TemporaryDirectory() as folder:
        path = Path(folder, model.name)
        model.download(str(path))
        return load_from_local(str(path), map_location)


_LOADERS = {
    ('',): load_from_local,
    ('http://', 'https://'): load_from_http,
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): load_from_backend,
    ('modelzoo://', 'torchvision://'): load_from_torchvision,
    ('open-mmlab://', 'openmmlab://'): load_from_openmmlab,
    ('mmcls://',): load_from_mmcls,
    ('pavi://',): load_from_pavi,
}


def install() -> None:
    """Replace MMEngine's readers with those of this module."""
    for prefixes, loader in _LOADERS.items():
        CheckpointLoader.register_scheme(prefixes=prefixes, loader=loader, force=True)
