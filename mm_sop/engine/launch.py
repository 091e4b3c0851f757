"""From a config to a trained model: what every training script of the project does."""

import difflib
import inspect
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from torch import nn

from mm_sop.datasets.coco_checks import check_coco, check_num_classes, class_names
from mm_sop.datasets.unlabelled_images import EXTENSIONS, iterate_images
from mm_sop.engine.atomic import remove_stale_temporaries
from mm_sop.engine.blocks import compile_blocks, expand_checkpointed
from mm_sop.engine.channel_order import ChannelOrderError, loading_order, network_order
from mm_sop.engine.checkpoints import check_resumable, find_latest
from mm_sop.engine.cpu import prepare_cpu
from mm_sop.engine.failures import LaunchError
from mm_sop.engine.folder_lock import lock_folder
from mm_sop.engine.launcher_watch import ends_with_launcher
from mm_sop.engine.rendezvous import meet
from mm_sop.engine.scaling import fit_schedules, pace_averaged_models, scale_learning_rate

_PACKAGE = Path(__file__).resolve().parents[1]

# Packages of the trackers that MMEngine knows.
_TRACKERS = dict(
    WandbVisBackend='wandb',
    TensorboardVisBackend='tensorboard',
    MLflowVisBackend='mlflow',
    ClearMLVisBackend='clearml',
    NeptuneVisBackend='neptune',
    DVCLiveVisBackend='dvclive',
    AimVisBackend='aim',
)

# Names under which a launcher passes rank, number of processes and rank on the machine.
_RANK_VARIABLES = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)


def launch(
    config: str | Path | Config,
    work_dir: str | None = None,
    resume: bool | str = False,
    amp: bool = False,
    data: str | None = None,
    launcher: str = 'none',
    seed: int | None = None,
    pretrained: str | None = None,
    cfg_options: dict | None = None,
) -> Runner:
    """Train.

    Works with any config of MMEngine's Runner: pretraining, classification or detection.

    Args:
        config: Config, or the path of one.
        work_dir: Folder of the results. Defaults to ``work_dirs/<name of the config>``.
        resume: True to go on from the latest checkpoint in the work directory, if there is one; or the path of a
            checkpoint.
        amp: Train with bfloat16 autocast.
        data: Folder of the training pictures, see :func:`set_data_root`.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        seed: Random seed. Defaults to that of the config, or 0.
        pretrained: Checkpoint whose backbone the model starts from, see :func:`set_pretrained`.
        cfg_options: Changes to the config, by dotted key.

    Returns:
        The runner after training.

    Raises:
        LaunchError: Config, data or device are not as they should be, or another run writes into the work directory.
        CheckpointError: The checkpoint to resume from is damaged.
        WeightsError: The pretrained checkpoint does not fit the backbone.
        AnnotationError: The annotations of a detection data set cannot be trained on.
    """
    prepare_cpu()
    check_devices(launcher)
    cfg = config if isinstance(config, Config) else load_config(config)
    merge_options(cfg, cfg_options or {})
    if pretrained is not None:
        set_pretrained(cfg, pretrained)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(cfg.filename or "unnamed.py").stem}'
    set_seed(cfg, seed)
    if data is not None:
        set_data_root(cfg, data)
    check_operators(cfg)
    check_trackers(cfg)
    check_data(cfg)
    fit_workers(cfg)
    if amp:
        enable_bfloat16(cfg)
    check_precision(cfg)
    with guard_run(cfg.work_dir, launcher):
        return _train(cfg, resume)


def _train(cfg: Config, resume: bool | str) -> Runner:
    remove_stale_temporaries(cfg.work_dir)
    set_resume(cfg, resume)
    prepare_dist(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    _complete(runner)
    runner.train()
    return runner


def _complete(runner: Runner) -> None:
    """What a config asks for and MMEngine's runner does not do by itself."""
    separate_norms(runner)
    scale_learning_rate(runner)
    pace_averaged_models(runner)
    fit_schedules(runner)
    expand_checkpointed(runner)
    compile_blocks(runner, runner.cfg.get('compile_blocks'))


def load_config(path: str | Path) -> Config:
    """Read a config file.

    Args:
        path: The file.

    Returns:
        The config.

    Raises:
        LaunchError: It does not exist or cannot be read; similar names are suggested.
    """
    path = Path(path)
    if not path.is_file():
        raise LaunchError(f'no config {path}{_suggest(str(path), _known_configs(path))}')
    try:
        return Config.fromfile(path)
    except (FileNotFoundError, SyntaxError, KeyError, TypeError) as error:
        raise LaunchError(f'cannot read the config {path}: {error}') from error


def _known_configs(path: Path) -> list[str]:
    beside = path.parent.glob('*.py') if path.parent.is_dir() else ()
    # In a checkout the configs stand beside the package, after installation inside of it.
    folder = next(
        (folder for folder in (_PACKAGE.parent / 'configs', _PACKAGE / '.mim/configs') if folder.is_dir()), None
    )
    shipped = (file for file in folder.rglob('*.py') if '_base_' not in file.parts) if folder else ()
    return sorted({os.path.relpath(file) for file in (*beside, *shipped)})


def _suggest(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, candidates, cutoff=0.5)
    return f'; did you mean {" or ".join(close)}?' if close else ''


def merge_options(cfg: Config, options: dict) -> None:
    """Change a config; keys that look like slips of the pen are pointed out.

    Args:
        cfg: Changed in place.
        options: Values by dotted key.

    Raises:
        LaunchError: A key leads into something that has no such part, or into a variable whose copies alone count.
    """
    for key, value in options.items():
        _refuse_variable(cfg, key)
        parent, name = _find_parent(cfg, key)
        close = difflib.get_close_matches(name, list(parent)) if parent is not None and name not in parent else []
        if close:
            print_log(f'--cfg-options {key}: {name!r} is new in the config; did you mean {close[0]!r}?', 'current')
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise LaunchError(f'--cfg-options {key}={value} does not fit the config: {error}') from error


def _refuse_variable(cfg: Config, key: str) -> None:
    """Refuse to change what the config file has copied to where it counts: nothing would come of it."""
    name, _, rest = key.partition('.')
    variable = cfg.get(name)
    read = inspect.signature(Runner).parameters
    if name in read or not isinstance(variable, (dict, list, str)):
        return
    places = [place for place in _find_equal(cfg._cfg_dict, variable) if place.split('.')[0] in read]
    if places:
        instead = ' or '.join(f'{place}.{rest}'.rstrip('.') for place in places)
        raise LaunchError(
            f'--cfg-options {key} would change nothing: {name} is a variable of the config, copied to where it counts. '
            f'Change {instead}'
        )


def _find_equal(tree: dict | list, value: dict | list | str, path: str = '') -> Iterator[str]:
    """Dotted keys below which an equal value stands."""
    for key, each in tree.items() if isinstance(tree, dict) else enumerate(tree):
        place = f'{path}.{key}'.lstrip('.')
        if each == value:
            yield place
        elif isinstance(each, (dict, list)):
            yield from _find_equal(each, value, place)


def _find_parent(cfg: Config, key: str) -> tuple[dict | None, str]:
    """The dictionary that holds the last part of a dotted key, if it is one and exists, and that part."""
    *path, name = key.split('.')
    parent = cfg._cfg_dict
    for part in path:
        parent = parent.get(part) if isinstance(parent, dict) else None
    return (parent if isinstance(parent, dict) else None), name


def set_seed(cfg: Config, seed: int | None) -> None:
    """Make sure that there is a seed, and that the order of the data follows from it alone.

    Args:
        cfg: Changed in place.
        seed: The seed; None for that of the config, or 0.

    Raises:
        LaunchError: It is negative.
    """
    if seed is not None and seed < 0:
        raise LaunchError(f'--seed {seed}: expected 0 or more')
    randomness = dict(cfg.get('randomness') or {})
    if seed is not None or randomness.get('seed') is None:
        randomness['seed'] = seed or 0
    cfg.randomness = randomness
    sampler = cfg.get('train_dataloader', {}).get('sampler', {})
    # MMEngine passes no seed on when those of the processes differ (diff_rank_seed).
    if sampler.get('type', '').split('.')[-1] == 'ResumableSampler':
        sampler.setdefault('seed', randomness['seed'])


def set_pretrained(cfg: Config, checkpoint: str) -> None:
    """Start a detector, segmentor or classifier from the backbone of a checkpoint.

    Args:
        cfg: Changed in place: its ``model.init_cfg`` becomes a :class:`PretrainedBackbone`, with the options that it
            has there already.
        checkpoint: The file, or ``'none'`` to start from random weights.
    """
    if checkpoint == 'none':
        cfg.model.init_cfg = None
        return
    cfg.model.init_cfg = dict(cfg.model.get('init_cfg') or {}, type='PretrainedBackbone', checkpoint=checkpoint)


def training_dataset(cfg: Config) -> dict | None:
    """The innermost config of the training data, without wrappers such as SeededDataset or RepeatDataset."""
    dataset = cfg.get('train_dataloader', {}).get('dataset')
    while dataset is not None and 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def leaf_datasets(dataset: dict | None) -> list[dict]:
    """Configs of the data sets that a config consists of, without wrappers such as SeededDataset or ConcatDataset."""
    if not dataset:
        return []
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    return [dataset] if inner is None else [leaf for part in inner for leaf in leaf_datasets(part)]


def set_data_root(cfg: Config, folder: str) -> None:
    """Train on the pictures of another folder.

    Self-supervised methods need no labels: their data set becomes ``UnlabelledImages`` with the same pipeline,
    whatever it was, so that any folder will do. In other configs ``data_root`` changes, and that of validation and test
    if it was the same one; the folder must be laid out as the data set expects.

    Args:
        cfg: Changed in place.
        folder: Folder of the pictures.

    Raises:
        LaunchError: The config has no training data.
    """
    dataset = training_dataset(cfg)
    if dataset is None:
        raise LaunchError('--data: the config has no train_dataloader')
    if not is_self_supervised(cfg):
        _move_labelled_data(cfg, folder)
        return
    if dataset.get('type') != 'UnlabelledImages':
        pipeline = dataset.get('pipeline', [])
        dataset.clear()
        dataset.update(type='mmpretrain.UnlabelledImages', pipeline=pipeline)
    dataset['data_root'] = folder


def _move_labelled_data(cfg: Config, folder: str) -> None:
    leaves = leaf_datasets(cfg.train_dataloader.dataset)
    old = leaves[0].get('data_root')
    for name in ('val_dataloader', 'test_dataloader'):
        leaves += [leaf for leaf in leaf_datasets((cfg.get(name) or {}).get('dataset')) if leaf.get('data_root') == old]
    for leaf in leaves:
        leaf['data_root'] = folder
    for name in ('val_evaluator', 'test_evaluator'):
        evaluators = cfg.get(name) or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if old and evaluator.get('ann_file', '').startswith(old):
                evaluator['ann_file'] = os.path.join(folder, evaluator['ann_file'].removeprefix(old).lstrip('/'))


def is_self_supervised(cfg: Config) -> bool:
    """Whether the model learns without labels."""
    model = MODELS.get(cfg.model.type) if isinstance(cfg.model.type, str) else cfg.model.type
    return isinstance(model, type) and issubclass(model, BaseSelfSupervisor)


def check_data(cfg: Config) -> None:
    """Refuse to begin without training pictures, or with annotations that cannot be trained on.

    Args:
        cfg: The config.

    Raises:
        LaunchError: The folder does not exist, or holds no picture where any picture would do.
        AnnotationError: COCO annotations have a fault, see :func:`check_coco`.
    """
    check_channels(cfg)
    leaves = leaf_datasets(cfg.get('train_dataloader', {}).get('dataset'))
    given = [leaf.get('data_root') or [] for leaf in leaves]
    roots = [root for listed in given for root in ([listed] if isinstance(listed, str) else listed)]
    missing = [root for root in roots if not Path(root).exists()]
    if missing:
        raise LaunchError(
            f'no training data: {", ".join(missing)} does not exist. Give a folder of pictures with --data DIR, or '
            'make a data set with tools/prepare_data.py'
        )
    for leaf, listed in zip(leaves, given, strict=True):
        if leaf['type'] in ('UnlabelledImages', 'mmpretrain.UnlabelledImages'):
            _check_pictures([listed] if isinstance(listed, str) else listed, leaf.get('extensions', EXTENSIONS))
    check_annotations(cfg, 'train', 'val')
    check_knn_data(cfg)


def check_channels(cfg: Config) -> None:
    """Refuse loading and preprocessing that contradict each other about the order of the colour channels.

    Args:
        cfg: The config.

    Raises:
        LaunchError: They do, or pictures of training and evaluation are loaded in different orders.
    """
    try:
        network_order(cfg)
        loading_order([cfg.get(name) for name in ('train_dataloader', 'val_dataloader', 'test_dataloader')])
        loading_order([cfg.get('train_dataloader'), cfg.get('custom_hooks')])
    except ChannelOrderError as error:
        raise LaunchError(str(error)) from error


def _check_pictures(folders: Sequence[str], extensions: Sequence[str]) -> None:
    """Look for a first picture in each folder."""
    for folder in folders:
        try:
            next(iterate_images(folder, extensions))
        except (OSError, ValueError) as error:
            raise LaunchError(f'no training data: {error}') from error


def check_knn_data(cfg: Config) -> None:
    """Refuse to begin without the labelled pictures of a k-NN hook, which ``--data`` does not replace.

    Args:
        cfg: The config.

    Raises:
        LaunchError: A folder does not exist, nor a listing of that name.
    """
    for index, hook in enumerate(cfg.get('custom_hooks') or ()):
        if str(hook.get('type')).endswith('KNNHook'):
            roots = [part.get('data_root') for part in (hook['bank'], *hook['queries'].values())]
            missing = [root for root in roots if root and not (Path(root).exists() or Path(f'{root}.json').is_file())]
            if missing:
                raise LaunchError(
                    f'no labelled pictures for k-NN: {", ".join(missing)} do not exist. Make those of the composites '
                    'with `python tools/prepare_data.py composites --only classes`, name others in '
                    f'custom_hooks.{index}, or leave out the hook'
                )


def check_annotations(cfg: Config, *splits: str) -> None:
    """Refuse COCO annotations with a fault, or whose classes are not those of the model.

    Args:
        cfg: The config.
        *splits: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        AnnotationError: See :func:`check_coco` and :func:`check_num_classes`.
    """
    for split in splits:
        for leaf in leaf_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            if leaf['type'] in ('CocoDataset', 'mmdet.CocoDataset'):
                check_coco(leaf)
                check_num_classes(cfg.model, class_names(leaf))


def check_devices(launcher: str) -> None:
    """Refuse more processes on a machine than it has GPUs, where it has any: two cannot share one under NCCL.

    Args:
        launcher: As for :func:`launch`.

    Raises:
        LaunchError: There are too few GPUs.
    """
    available = torch.cuda.device_count()
    rank = int(os.environ.get(_RANK_VARIABLES[launcher][-1], 0)) if launcher != 'none' else 0
    if 0 < available <= rank:
        raise LaunchError(
            f'process {rank} (from 0) of this machine has no GPU of its own, as only {available} can be seen: start '
            "fewer processes, or use the CPU with CUDA_VISIBLE_DEVICES=''"
        )


@contextmanager
def guard_run(work_dir: str | Path, launcher: str) -> Iterator[None]:
    """Keep other runs out of a folder of results, and end this process with its launcher.

    The first process, which writes for all, locks the folder; see :func:`lock_folder` and :func:`ends_with_launcher`.

    Args:
        work_dir: The folder.
        launcher: As for :func:`launch`.

    Raises:
        LaunchError: Another run writes there.
    """
    with ends_with_launcher(launcher), lock_folder(work_dir) if is_first_process(launcher) else nullcontext():
        yield


def is_first_process(launcher: str) -> bool:
    """Whether this process is the one of its run that writes, also before the processes communicate.

    Args:
        launcher: As for :func:`launch`.

    Raises:
        LaunchError: This process was not started by that launcher.
    """
    if launcher == 'none':
        return True
    variable = _RANK_VARIABLES[launcher][0]
    if variable not in os.environ:
        raise LaunchError(
            f'--launcher {launcher}: {variable} is not set, so this process was not started by it. Use '
            'tools/dist_train.sh, torchrun, tools/slurm_train.sh or mpirun, or leave out --launcher'
        )
    return int(os.environ[variable]) == 0


def check_operators(cfg: Config) -> None:
    """Refuse a config with parts of MMDetection where MMCV has no compiled operators.

    Args:
        cfg: The config.

    Raises:
        LaunchError: The operators are missing.
    """
    uses_detection = cfg.get('default_scope') == 'mmdet' or "'mmdet." in str(cfg.to_dict())
    if uses_detection and find_spec('mmcv._ext') is None:
        raise LaunchError(
            f'{Path(cfg.filename or "config").name} needs MMCV with compiled operators: `bash tools/setup.sh test` '
            'builds it once'
        )


def check_trackers(cfg: Config) -> None:
    """Refuse a config with a tracker of experiments that is not installed.

    Args:
        cfg: The config.

    Raises:
        LaunchError: The message has the command that installs it.
    """
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or []
    names = [str(backend.get('type')).split('.')[-1] for backend in backends if isinstance(backend, dict)]
    for name in names:
        package = _TRACKERS.get(name)
        if package and find_spec(package) is None:
            install = "pip install -e '.[wandb]'" if package == 'wandb' else f'pip install {package}'
            raise LaunchError(
                f'{name} needs the package {package}, which is not installed: `{install}`, or leave it out of '
                'visualizer.vis_backends'
            )


def fit_workers(cfg: Config) -> None:
    """Leave out what PyTorch refuses to a DataLoader without worker processes.

    Args:
        cfg: Changed in place.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader and not loader.get('num_workers'):
            for option in ('persistent_workers', 'prefetch_factor'):
                loader.pop(option, None)


def enable_bfloat16(cfg: Config) -> None:
    """Switch the optimiser wrapper of any config to bfloat16, on CPU as well as on CUDA.

    Args:
        cfg: Changed in place.
    """
    wrapper = cfg.optim_wrapper
    if wrapper.get('type', 'OptimWrapper') in ('OptimWrapper', 'AmpOptimWrapper'):
        wrapper.pop('loss_scale', None)
        clip = wrapper.pop('clip_grad', None)
        if clip:
            wrapper.clip = dict(type='global_norm', max_norm=clip['max_norm'])
        wrapper.type = 'mmpretrain.PretrainOptimWrapper'
    wrapper.dtype = 'bfloat16'


def check_precision(cfg: Config) -> None:
    """Refuse half precision for detectors on the CPU.

    Args:
        cfg: The config.

    Raises:
        LaunchError: MMCV's operators would end the first iteration.
    """
    dtype = (cfg.get('optim_wrapper') or {}).get('dtype', 'float32')
    if dtype != 'float32' and cfg.get('default_scope') == 'mmdet' and not torch.cuda.is_available():
        raise LaunchError(
            f"{dtype} for a detector needs a CUDA device, as MMCV's NMS on the CPU knows float32 only: leave out --amp "
            'and optim_wrapper.dtype'
        )


def set_resume(cfg: Config, resume: bool | str) -> None:
    """Find and check the checkpoint to go on from.

    Args:
        cfg: Changed in place.
        resume: As for :func:`launch`; False for what the config says itself.

    Raises:
        CheckpointError: It is damaged or missing; the message names another one.
    """
    resume = resume or (cfg.get('resume', False) and (cfg.get('load_from') or True))
    if not resume:
        return
    path = find_latest(cfg.work_dir) if resume is True else Path(resume)
    if path is None:
        cfg.resume = False
        print_log(f'No checkpoint in {cfg.work_dir}: training starts from the beginning.', 'current')
        return
    check_resumable(path)
    cfg.resume = True
    cfg.load_from = str(path)
    initialisation = cfg.model.get('init_cfg')
    if isinstance(initialisation, dict) and initialisation.get('type') == 'PretrainedBackbone':
        # Its weights would be overwritten, and its file is not needed any more.
        cfg.model.init_cfg = None


def prepare_dist(cfg: Config) -> None:
    """Start the communication of the processes, also where there is no CUDA device, which MMEngine cannot do by itself.

    All have to arrive within a few minutes, see :func:`meet`.

    Args:
        cfg: Changed in place.

    Raises:
        LaunchError: The config asks for NCCL, which needs CUDA, or a process has not arrived.
    """
    if cfg.launcher == 'none':
        return
    has_cuda = torch.cuda.is_available()
    options = dict(cfg.get('env_cfg', {}).get('dist_cfg') or {})
    if not has_cuda and options.get('backend', 'gloo') != 'gloo':
        raise LaunchError(
            f'env_cfg.dist_cfg.backend={options["backend"]!r} needs a CUDA device, and none is available: leave it '
            'out, or add --cfg-options env_cfg.dist_cfg.backend=gloo'
        )
    if not dist.is_initialized():
        _connect_processes(cfg.launcher, options, has_cuda)
    if has_cuda:
        return
    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    wrapper.setdefault('broadcast_buffers', False)
    wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _connect_processes(launcher: str, options: dict, has_cuda: bool) -> None:
    """Let the processes find each other, with a bound in time that is not that of training."""
    if options.get('init_backend', 'torch') != 'torch':
        # MMEngine's runner starts DeepSpeed and the like.
        return
    if launcher == 'slurm' and 'port' in options:
        os.environ['MASTER_PORT'] = str(options['port'])
    _export_rank(launcher)
    store, rank, world_size = meet()
    timeout = options.setdefault('timeout', 1800)
    store.set_timeout(timedelta(seconds=timeout))
    group = dict(store=dist.PrefixStore('default_pg', store), rank=rank, world_size=world_size)
    if has_cuda:
        init_dist(launcher, **options, **group)
    else:
        dist.init_process_group('gloo', timeout=timedelta(seconds=timeout), **group)


def separate_norms(runner: Runner) -> None:
    """Let every process have its own BatchNorm statistics where they cannot be synchronised: SyncBN needs CUDA.

    MMEngine does the same for a single process.

    Args:
        runner: Its model is changed in place; the parameters stay the same objects.
    """
    norms = sum(isinstance(module, nn.SyncBatchNorm) for module in runner.model.modules())
    if norms and not torch.cuda.is_available():
        runner.model = revert_sync_batchnorm(runner.model)
        print_log(
            f'{norms} SyncBN became BatchNorm, with statistics of each process: there is no CUDA device', 'current'
        )


def _export_rank(launcher: str) -> None:
    """Translate a launcher's variables into those of torch.distributed."""
    for name, source in zip(('RANK', 'WORLD_SIZE', 'LOCAL_RANK'), _RANK_VARIABLES[launcher], strict=True):
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        nodes = os.environ.get('SLURM_NODELIST')
        listing = ['scontrol', 'show', 'hostname', nodes]
        first = subprocess.check_output(listing, text=True).split()[0] if nodes else '127.0.0.1'
        os.environ['MASTER_ADDR'] = first
