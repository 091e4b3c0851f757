"""Every config file can be used."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmcv.transforms import Compose
from mmengine.config import Config
from mmpretrain.registry import HOOKS, LOOPS, MODELS, OPTIM_WRAPPERS

from mm_sop.encoders.safe_config import check_config
from mm_sop.engine.rehearsal import without_memory

ROOT = Path(__file__).parents[1]
ALL_CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)
FOLDERS = sorted({path.relative_to(ROOT / 'configs').parts[0] for path in ALL_CONFIGS})
# Detectors and segmentors have tests of their own.
CONFIGS = [path for path in ALL_CONFIGS if path.parent.name not in ('detection', 'segmentation')]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds(path):
    config = Config.fromfile(path)
    # What a run writes into its checkpoints can be read without trust.
    check_config(config, 'w.pth', 'backbone', 'model', 'data_preprocessor', 'train_dataloader', 'custom_hooks')
    with without_memory():
        model = MODELS.build(dict(config.model, data_preprocessor=config.data_preprocessor))
    assert isinstance(model, torch.nn.Module)
    for hook in [*config.default_hooks.values(), *config.custom_hooks]:
        assert HOOKS.get(hook['type']), hook
    assert LOOPS.get(config.train_cfg.type)
    assert OPTIM_WRAPPERS.get(config.optim_wrapper.type)
    assert Compose(config.train_dataloader.dataset.dataset.pipeline)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_mask_grid_fits_the_backbone(path):
    config = Config.fromfile(path)
    if config.model.get('mim_head') is None:
        return
    pipeline = config.train_dataloader.dataset.dataset.pipeline
    masks = next(step for step in pipeline if step['type'] == 'BlockMaskGenerator')
    views = next(step for step in pipeline if step['type'] == 'FastMultiView')
    crop = views['transforms'][0][0]['scale']
    side = crop // config.model.backbone.patch_size
    assert masks['grid'] == (side, side)


def test_at_most_three_levels_of_inheritance():
    """Not counting what is below the datasets: two_views.py, and MMDetection's files."""

    def depth(path):
        found = re.search(r'^_base_ = (\[.*?\]|\S+)', path.read_text(), re.M | re.S)
        bases = re.findall(r"'([^':]+)'", found.group(1)) if found else []
        bases = [base for base in bases if base != './two_views.py']
        return 1 + max((depth((path.parent / base).resolve()) for base in bases), default=0)

    assert {path.name: depth(path) for path in ALL_CONFIGS if depth(path) > 3} == {}


def test_presets_of_released_code_and_paper():
    released = Config.fromfile(ROOT / 'configs/sop/vitb.py').model
    sampler = released.head.prototypes
    assert (sampler.num_anchors, sampler.num_supports, sampler.num_tasks) == (64, 8, 4)
    assert (sampler.anchor_selection, sampler.anchor_weight, sampler.bank.size) == ('uniform', 0.9, 65536)
    local = released.target_generator.prototypes
    assert (local.num_anchors, local.num_supports, local.num_tasks, local.bank.size) == (512, 0, 1, 8192)
    paper = Config.fromfile(ROOT / 'configs/sop/vitb_paper.py').model.head.prototypes
    assert (paper.num_anchors, paper.num_supports, paper.num_tasks) == (4096, 8, 1)
    assert paper.anchor_selection == 'all'


def test_residual_branches_start_as_in_the_authors_code():
    """ReSA: closed in all ResNets for ImageNet, open for small images; SimCLR and SimSiam closed, MoCo v2 open."""
    names = dict(resa_r18_in100=True, resa_r50_b256_100e=True, resa_r18_cifar10=False)
    paths = {f'resa/{name}': closed for name, closed in names.items()}
    paths |= {'simclr/simclr_r50_in1k': True, 'simsiam/simsiam_r50_in1k': True, 'mocov2/mocov2_r50_in1k': False}
    found = {name: Config.fromfile(ROOT / f'configs/{name}.py').model.backbone.zero_init_residual for name in paths}
    assert found == paths


@pytest.mark.parametrize('metafile', sorted((ROOT / 'configs').glob('*/metafile.yml')), ids=lambda p: p.parent.name)
def test_metafile(metafile):
    content = yaml.safe_load(metafile.read_text())
    collections = {collection['Name'] for collection in content['Collections']}
    for collection in content['Collections']:
        assert (ROOT / collection['README']).is_file()
    for model in content['Models']:
        assert model['In Collection'] in collections
        config = Config.fromfile(ROOT / model['Config'])
        assert model['Metadata']['Epochs'] == config.train_cfg.max_epochs
        assert model['Name'] in (ROOT / model['Config']).read_text()
        if 'Parameters' not in model['Metadata']:
            continue
        with without_memory():
            backbone = MODELS.build(config.model.backbone)
        parameters = sum(p.numel() for name, p in backbone.named_parameters() if name != 'mask_token')
        assert model['Metadata']['Parameters'] == parameters


def names_of_configs(text):
    """Names of config files between backticks, without suffix; ``{a,b}`` stands for each of its options."""
    for name in re.findall(r'`([A-Za-z0-9_{},./*-]+)\.py`', text):
        head, _, rest = name.partition('{')
        options, _, tail = rest.partition('}')
        yield from (head + option + tail for option in options.split(','))


def names_in(folder):
    return {str(path.relative_to(folder).with_suffix('')) for path in ALL_CONFIGS if folder in path.parents}


@pytest.mark.parametrize('folder', FOLDERS)
def test_readme_names_every_config(folder):
    readme = (ROOT / 'configs' / folder / 'README.md').read_text()
    assert names_in(ROOT / 'configs' / folder) <= set(names_of_configs(readme))


def test_status_of_every_config():
    """The table of configs/README.md covers all configs and agrees with the results in the documentation."""
    text = (ROOT / 'configs/README.md').read_text()
    rows = re.findall(r'^\| (`.*?`) \| (trained|short|runs|builds) \| (.*) \|$', text, re.M)
    assert len(rows) == text.count('\n| `')
    missing, status = names_in(ROOT / 'configs'), {}
    for names, kind, result in rows:
        for pattern in names_of_configs(names):
            found = {name for name in missing if Path(name).match(pattern) and name.count('/') == pattern.count('/')}
            assert found, pattern
            missing -= found
            status |= dict.fromkeys(found, kind)
            if kind in ('trained', 'short'):
                page = ROOT / 'configs' / re.search(r'\((.*?)(#.*)?\)', result).group(1)
                pages = page.read_text() + (page.with_suffix('.json').read_text() if 'benchmarks' in str(page) else '')
                assert all(f'{name}.py' in pages for name in found), (found, page)
    assert not missing
    # Whatever has results is listed with them.
    results = ''.join(page.read_text() for page in (ROOT / 'docs/benchmarks').glob('*_on_composites.json'))
    assert all(status[name] in ('trained', 'short') for name in status if f'"{name}.py"' in results)


@pytest.mark.parametrize('folder', FOLDERS)
def test_index_names_every_method(folder):
    if (ROOT / 'configs' / folder / 'metafile.yml').is_file():
        assert f'configs/{folder}/metafile.yml' in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
