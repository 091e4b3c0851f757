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
    """Fetch a file into PyTorch's cache, once. Raises a :class:`WeightsError` if it cannot be fetched."""
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


# MMEngine logs what follows `load_from_` in the names of these functions.


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


def load_from_model_zoo(filename: str, map_location: Device = None):
    """Read published weights by name: of torchvision, OpenMMLab or, without their heads, MMClassification."""
    scheme, name = filename.split('://', 1)
    if scheme == 'mmcls':
        addresses = mmengine_checkpoint.get_mmcls_models()
    elif scheme in ('modelzoo', 'torchvision'):
        addresses = mmengine_checkpoint.get_torchvision_models()
    else:
        addresses = mmengine_checkpoint.get_external_models()
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in addresses:
        raise WeightsError(f'{scheme}://{name}: no weights of this name are known')
    if urlparse(addresses[name]).scheme in ('http', 'https'):
        content = load_from_http(addresses[name], map_location)
    else:
        content = load_from_local(str(Path(mmengine_checkpoint._get_mmengine_home(), addresses[name])), map_location)
    return mmengine_checkpoint._process_mmcls_checkpoint(content) if scheme == 'mmcls' else content


def load_from_pavi(filename: str, map_location: Device = None):
    """Read a checkpoint from PAVI."""
    from pavi import modelcloud

    model = modelcloud.get(filename.split('://', 1)[1])
    with TemporaryDirectory() as folder:
        path = Path(folder, model.name)
        model.download(str(path))
        return load_from_local(str(path), map_location)


_LOADERS = {
    load_from_local: ('',),
    load_from_http: ('http://', 'https://'),
    load_from_backend: (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'),
    load_from_model_zoo: ('modelzoo://', 'torchvision://', 'open-mmlab://', 'openmmlab://', 'mmcls://'),
    load_from_pavi: ('pavi://',),
}


def install() -> None:
    """Replace MMEngine's readers with those of this module."""
    for loader, prefixes in _LOADERS.items():
        CheckpointLoader.register_scheme(prefixes=prefixes, loader=loader, force=True)
