"""From a checkpoint to an encoder, and what is refused on the way."""

from urllib.error import URLError

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

import mm_sop
from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.encoder import Encoder, EncoderSpecification, build_encoder
from mm_sop.encoders.safe_config import parse_assignments
from mm_sop.engine.preflight import check_channels
from mm_sop.evaluation.retrieval.mining import PlainImages
from mm_sop.export import ExportError, export
from mm_sop.export.export import sample_images
from mm_sop.models.utils.readout import read_out
from mm_sop.utils.channel_order import loading_order
from mm_sop.utils.failures import LaunchError

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=48)
VIT = dict(type='MaskedVisionTransformer', arch=ARCH, img_size=32, patch_size=8)
RESNET = dict(type='ResNet', depth=18, stem_channels=4, base_channels=4)


class Opener:
    def __reduce__(self):
        return (print, ('code was run',))


def build(backbone):
    network = MODELS.build(dict(backbone))
    # MMPretrain's own `eval` returns None.
    network.eval()
    return network


def save(path, backbone, **entries):
    torch.manual_seed(0)
    network = build(backbone)
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    cfg = Config(dict(model=dict(type='SimSiam', backbone=backbone), seed=3)).pretty_text
    torch.save(dict(dict(state_dict=state, meta=dict(cfg=cfg, iter=5)), **entries), path)
    return network


@pytest.mark.parametrize('backbone', [VIT, RESNET])
def test_checkpoints_say_themselves_what_they_hold(backbone, tmp_path):
    network = save(tmp_path / 'w.pth', backbone)
    encoder = mm_sop.load(tmp_path / 'w.pth')
    assert encoder.specification.image_size == backbone.get('img_size', 224)
    assert encoder.specification.origin['iter'] == 5
    images = torch.rand(2, 3, 32, 64)
    features, local_map = encoder(images)
    output = network(encoder.prepare(images))[-1]
    expected = output[:, 0] if backbone is VIT else output.mean((2, 3))
    torch.testing.assert_close(features, expected)
    grid = output[:, 1:].transpose(1, 2).reshape(2, 32, 4, 8) if backbone is VIT else output
    torch.testing.assert_close(local_map, grid)
    assert mm_sop.load(tmp_path / 'w.pth', image_size=64).transform.crop_size == 64


def test_stored_configs_are_not_run():
    text = "import os\nos.abort()\na = dict(b=[1, (2.5, -1e-3)], c=None)\nd = os.getcwd()\ne = {'f': True}\n"
    assert parse_assignments(text) == dict(a=dict(b=[1, (2.5, -1e-3)], c=None), e=dict(f=True))


def test_config_is_asked_for_where_it_is_unknown(tmp_path):
    network = save(tmp_path / 'w.pth', RESNET, meta=dict(cfg='model = build()'))
    with pytest.raises(WeightsError, match=r'does not say what network it holds: give the config .*--from'):
        mm_sop.load(tmp_path / 'w.pth')
    encoder = mm_sop.load(tmp_path / 'w.pth', config=Config(dict(model=dict(backbone=RESNET))))
    assert torch.equal(encoder.network.conv1.weight, network.conv1.weight)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(patch_size=16), r'patch_embed.projection.weight(?s:.*)another patch size or width'),
        (dict(img_size=64), r'pos_embed +\(1, 17, 32\), expected \(1, 65, 32\)(?s:.*)another number of positions'),
        (dict(arch=dict(ARCH, num_layers=4)), r'missing +backbone.layers.3.ln1.weight'),
        (dict(arch=dict(ARCH, num_layers=2)), r'unexpected +layers.2.ln1.weight'),
        (RESNET, 'does not hold this network'),
    ],
)
def test_other_architectures_are_refused(change, message, tmp_path):
    save(tmp_path / 'w.pth', VIT)
    backbone = RESNET if change is RESNET else dict(VIT, **change)
    with pytest.raises(WeightsError, match=message):
        mm_sop.load(tmp_path / 'w.pth', config=Config(dict(model=dict(backbone=backbone))))


def test_missing_position_embedding_is_named(tmp_path):
    save(tmp_path / 'w.pth', VIT)
    content = torch.load(tmp_path / 'w.pth')
    del content['state_dict']['backbone.pos_embed']
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=r'missing +backbone.pos_embed(?s:.*)no position embedding'):
        mm_sop.load(tmp_path / 'w.pth')


def test_code_is_run_on_request_only(tmp_path, capsys):
    save(tmp_path / 'w.pth', RESNET, hook=Opener())
    with pytest.raises(
        WeightsError, match='would run code. If you trust where it comes from, `tools/export.py .* --trust'
    ):
        mm_sop.load(tmp_path / 'w.pth')
    assert 'code was run' not in capsys.readouterr().out
    mm_sop.load(tmp_path / 'w.pth', trusted=True)
    assert capsys.readouterr().out.count('code was run') == 1


@pytest.mark.parametrize(
    ('prefixes', 'asked', 'found'),
    [
        (['backbone.'], 'teacher', 'backbone'),
        (['backbone.'], 'student', 'backbone'),
        (['backbone.', 'encoder_k.0.'], 'teacher', 'backbone'),
        (['backbone.', 'teacher.backbone.'], 'teacher', 'teacher'),
        (['backbone.', 'teacher.backbone.'], 'student', 'student'),
    ],
)
def test_networks_are_called_what_they_are(prefixes, asked, found, tmp_path):
    network = save(tmp_path / 'w.pth', RESNET)
    state = {prefix + name: value for prefix in prefixes for name, value in network.state_dict().items()}
    torch.save(dict(torch.load(tmp_path / 'w.pth'), state_dict=state), tmp_path / 'w.pth')
    assert mm_sop.load(tmp_path / 'w.pth', asked).specification.network == found


def test_networks_of_other_libraries_are_called_what_they_are(tmp_path):
    state = VisionTransformer(32, 8, embed_dim=64, depth=1, num_heads=1, num_classes=0).state_dict()
    torch.save(state, tmp_path / 'w.pth')
    assert mm_sop.load(tmp_path / 'w.pth', source='timm').specification.network == 'backbone'
    torch.save(dict(teacher=state, student=state), tmp_path / 'w.pth')
    assert mm_sop.load(tmp_path / 'w.pth', 'student', source='ibot').specification.network == 'student'


def test_requests_are_checked(tmp_path):
    save(tmp_path / 'w.pth', RESNET)
    with pytest.raises(ValueError, match=r"network='both'\): expected one of teacher, student"):
        mm_sop.load(tmp_path / 'w.pth', 'both')
    with pytest.raises(ValueError, match=r'image_size=0\): expected at least 1'):
        mm_sop.load(tmp_path / 'w.pth', image_size=0)
    expected = r"no format or config 'dinov3'; did you mean dinov2.*\?: expected timm, dinov2, ibot, .*timm:NAME"
    with pytest.raises(WeightsError, match=expected):
        mm_sop.load(tmp_path / 'w.pth', source='dinov3')


def test_the_machine_of_the_maker_is_not_named(tmp_path):
    save(tmp_path / 'w.pth', RESNET)
    for root, shown in ((str(tmp_path / 'photos'), 'photos'), ('data/photos', 'data/photos')):
        dataset = dict(type='UnlabeledImages', data_root=root)
        config = Config(dict(model=dict(backbone=RESNET), train_dataloader=dict(dataset=dataset)))
        config.train_dataloader.dataset.pipeline = [dict(type='RandomResizedCrop', scale=32)]
        specification = mm_sop.load(tmp_path / 'w.pth', config=config).specification
        assert specification.origin['data'] == shown
        assert str(tmp_path) not in specification.dumps()


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((8, 8, 3), np.uint8), 'a PIL image, a list of them or a tensor.*got ndarray'),
        ('image.jpg', 'got str'),
        ([torch.zeros(3, 8, 8)], 'got list of Tensor'),
        ([], 'got list of nothing'),
        (torch.zeros(0, 3, 8, 8), r'got \(0, 3, 8, 8\)'),
        (torch.full((1, 3, 8, 8), 255.0), 'uint8 or of 0 ... 1, got values of 255 ... 255'),
        (torch.full((3, 8, 8), -2.0), 'got values of -2 ... -2'),
        (torch.full((3, 8, 8), float('nan')), 'got values of nan'),
    ],
)
def test_other_inputs_are_refused(images, message):
    specification = EncoderSpecification(None, (120.0,) * 3, (60.0,) * 3, 8)
    with pytest.raises(ValueError, match=message):
        Encoder(torch.nn.Identity(), specification)(images)


def test_damaged_files_are_refused(tmp_path):
    save(tmp_path / 'w.pth', VIT)
    whole = (tmp_path / 'w.pth').read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / 'w.pth').write_bytes(whole[:length])
        with pytest.raises(WeightsError, match='w.pth (cannot be read|is damaged)'):
            mm_sop.load(tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match='no checkpoint .*expected a file, a folder, an address'):
        mm_sop.load(tmp_path / 'other.pth')


def test_imported_encoders_serve_mining_and_evaluation(tmp_path):
    torch.save(VisionTransformer(32, 8, embed_dim=64, depth=1, num_heads=1).state_dict(), tmp_path / 'w.pth')
    config = Config(dict(model=dict(data_preprocessor=dict(to_rgb=True))))
    encoder = build_encoder(config, tmp_path / 'w.pth', 'timm')
    readout = encoder.read(dict(inputs=torch.zeros(2, 3, 32, 32, dtype=torch.uint8), data_samples=[]))
    assert readout.local_map.shape == (2, 64, 4, 4)
    assert encoder.identity['source'] == 'timm'


@pytest.mark.parametrize('kind', ['MaskedVisionTransformer', 'VisionTransformer'])
def test_imports_are_starting_points_of_training(kind, tmp_path):
    network = save(tmp_path / 'w.pth', dict(VIT, type='VisionTransformer', out_type='raw'))
    init_cfg = dict(type='PretrainedBackbone', checkpoint=str(tmp_path / 'w.pth'))
    head = dict(type='DINOHead', num_prototypes=8)
    neck = dict(type='DINONeck', in_channels=32, hid_channels=8, bottleneck_channels=4, num_prototypes=8)
    model = MODELS.build(
        dict(type='DINO', backbone=dict(VIT, type=kind, out_type='raw'), neck=neck, head=head, init_cfg=init_cfg)
    )
    model.init_weights()
    for backbone in (model.backbone, model.teacher['backbone']):
        for name, value in network.state_dict().items():
            assert torch.equal(backbone.state_dict()[name], value), name


def test_last_blocks_of_a_transformer_are_normed_tokens():
    network = build(VIT)
    images = torch.randn(2, 3, 32, 32)
    tokens, resolution = network.patch_embed(images)
    tokens = torch.cat([network.cls_token.expand(2, -1, -1), tokens], 1) + network.pos_embed
    states = []
    for layer in network.layers:
        tokens = layer(tokens)
        states.append(network.ln1(tokens))
    readout = read_out(network, images, 2)
    for state, summary, grid in zip(states[1:], readout.summaries, readout.maps, strict=True):
        torch.testing.assert_close(summary, state[:, 0])
        torch.testing.assert_close(grid.flatten(2).transpose(1, 2), state[:, 1:])
    torch.testing.assert_close(readout.global_features, states[-1][:, 0])
    assert readout.local_map.shape == (2, 32, *resolution)
    for out_type in ('cls_token', 'featmap'):
        network.out_type = out_type
        torch.testing.assert_close(read_out(network, images).local_map, readout.local_map)
    with pytest.raises(ValueError, match='4 blocks of MaskedVisionTransformer cannot be read: it has 3'):
        read_out(network, images, 4)


def test_last_stages_of_resnets_are_the_same_in_all_libraries():
    import timm
    from torchvision.models import resnet18

    images = torch.randn(2, 3, 32, 32)
    reference = resnet18().eval()
    others = [timm.create_model('resnet18', num_classes=0), MODELS.build(dict(type='ResNet', depth=18))]
    reference.fc = torch.nn.Identity()
    expected = read_out(reference, images, 3)
    assert [grid.shape[1] for grid in expected.maps] == [128, 256, 512]
    for network in others:
        network.load_state_dict(reference.state_dict())
        network.eval()
        found = read_out(network, images, 3)
        torch.testing.assert_close(found.global_features, expected.global_features)
        for pair in zip(found.maps + found.summaries, expected.maps + expected.summaries, strict=True):
            torch.testing.assert_close(*pair)


def test_blocks_of_timm_and_torchvision_transformers_agree():
    from torchvision.models import VisionTransformer as Theirs

    from mm_sop.encoders.formats import from_format, to_format

    ours = VisionTransformer(32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=0).eval()
    theirs = Theirs(32, 8, 2, 2, 32, 128).eval()
    theirs.heads = torch.nn.Identity()
    theirs.load_state_dict(to_format(from_format(ours.state_dict(), 'timm'), 'torchvision'))
    images = torch.randn(2, 3, 32, 32)
    for pair in zip(read_out(ours, images, 2), read_out(theirs, images, 2), strict=True):
        torch.testing.assert_close(*pair)


def test_maps_of_other_networks():
    from torchvision.models import mobilenet_v3_small

    network = mobilenet_v3_small().eval()
    network.classifier = torch.nn.Identity()
    readout = read_out(network, torch.randn(1, 3, 64, 64))
    assert readout.local_map.shape == (1, 576, 2, 2)
    torch.testing.assert_close(readout.global_features, readout.local_map.mean((2, 3)))
    swin = build(dict(type='SwinTransformer', arch='tiny', img_size=64, window_size=2))
    assert read_out(swin, torch.randn(1, 3, 64, 64)).local_map.shape == (1, 768, 2, 2)


def test_a_damaged_teacher_is_not_replaced_by_the_student(tmp_path):
    save(tmp_path / 'w.pth', RESNET)
    content = torch.load(tmp_path / 'w.pth', weights_only=True)
    student = content['state_dict']
    teacher = {f'teacher.{name}': value for name, value in student.items() if 'layer4.1.conv2' not in name}
    torch.save(dict(content, state_dict={**student, **teacher}), tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=r'1 of .* tensors are missing(?s:.*)teacher.backbone.layer4.1.conv2.weight'):
        mm_sop.load(tmp_path / 'w.pth')
    assert mm_sop.load(tmp_path / 'w.pth', network='student')


def test_precision_and_orientation_of_images(tmp_path):
    save(tmp_path / 'w.pth', RESNET)
    encoder = mm_sop.load(tmp_path / 'w.pth')
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert torch.equal(encoder.prepare(turned), encoder.prepare(upright))
    assert encoder.to(torch.bfloat16)(upright)[0].dtype == torch.bfloat16


def test_names_of_other_places(tmp_path, monkeypatch):
    save(tmp_path / 'w.pth', RESNET)
    asked = []

    def download(url, path):
        asked.append(url)
        (tmp_path / 'w.pth').rename(path)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    for _ in range(2):
        assert mm_sop.load('https://example.org/runs/w.pth?download=1').specification.backbone['depth'] == 18
    assert asked == ['https://example.org/runs/w.pth?download=1']
    save(tmp_path / 'w.pth', VIT)
    assert mm_sop.load('https://example.org/others/w.pth').specification.backbone['type'] == VIT['type']

    def fail(*_):
        raise URLError('no route to host')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    with pytest.raises(WeightsError, match='https://example.org/new.pth cannot be downloaded: .*no route to host'):
        mm_sop.load('https://example.org/new.pth')

    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda name: str(tmp_path / name))
    with pytest.raises(WeightsError, match='no checkpoint .*owner/name|owner/name has no mm_sop.json'):
        mm_sop.load('hf:owner/name')


def draw_modes():
    """Images of all kinds that files may hold, by the ending of a format that keeps them."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (40, 56), np.uint8))
    deep = rng.integers(0, 65536, (40, 56), np.uint16)
    palette = rgb.quantize(16)
    palette.info['transparency'] = 3
    with_alpha, gray_alpha = rgb.copy(), alpha.copy()
    with_alpha.putalpha(alpha)
    gray_alpha.putalpha(alpha)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        'rgb.png': (rgb, {}),
        'gray.png': (alpha, {}),
        'binary.png': (alpha.convert('1'), {}),
        'palette.png': (palette, {}),
        'alpha.png': (with_alpha, {}),
        'gray_alpha.png': (gray_alpha, {}),
        'turned.png': (rgb, dict(exif=turned)),
        'deep.png': (Image.fromarray(deep), {}),
        'deep.tif': (Image.fromarray(deep), {}),
        'integers.tif': (Image.fromarray(deep.astype(np.int32) - 5000), {}),
        'floats.tif': (Image.fromarray(deep.astype(np.float32) / 7 - 2000), {}),
        'cmyk.tif': (rgb.convert('CMYK'), {}),
    }


def test_pil_images_are_read_as_in_training(tmp_path):
    save(tmp_path / 'w.pth', VIT)
    encoder = mm_sop.load(tmp_path / 'w.pth')
    pipeline, expected = Compose(encoder.transform.steps), []
    folder = tmp_path / 'images'
    folder.mkdir()
    for name, (image, options) in sorted(draw_modes().items()):
        image.save(folder / name, **options)
        loaded = pipeline(dict(img_path=str(folder / name)))['inputs'].flip(0)
        expected.append(encoder.prepare(loaded))
        assert torch.equal(encoder.prepare(Image.open(folder / name)), expected[-1]), name
    # The check of exports.
    assert torch.equal(encoder.prepare(sample_images(folder, 99)), torch.cat(expected))


def channel_config(channel_order, to_rgb, folder):
    pipeline = [dict(type='LoadImage', **channel_order), dict(type='PackInputs')]
    dataset = dict(type='UnlabeledImages', data_root=str(folder), pipeline=pipeline)
    preprocessor = dict(type='SelfSupDataPreprocessor', mean=[10, 120, 200], std=[50, 60, 70], to_rgb=to_rgb)
    model = dict(type='SimSiam', backbone=RESNET, data_preprocessor=preprocessor)
    return Config(dict(model=model, train_dataloader=dict(batch_size=1, dataset=dataset)))


RGB, BGR = dict(channel_order='rgb'), dict(channel_order='bgr')


@pytest.mark.parametrize(
    ('order', 'to_rgb', 'network_is'),
    [({}, True, 'rgb'), (BGR, True, 'rgb'), (RGB, False, 'rgb'), ({}, False, 'bgr')],
    ids=['usual', 'explicit', 'loaded_as_rgb', 'bgr'],
)
def test_networks_get_the_channels_of_their_training(order, to_rgb, network_is, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (tmp_path / 'images').mkdir()
    Image.fromarray(image).save(tmp_path / 'images/a.png')
    config = channel_config(order, to_rgb, tmp_path / 'images')
    check_channels(config)
    network = save(tmp_path / 'w.pth', RESNET, meta=dict(cfg=config.pretty_text))
    # As in training.
    batch = default_collate([DATASETS.build(config.train_dataloader.dataset)[0]])
    inputs = MODELS.build(config.model.data_preprocessor)(batch)['inputs']
    seen = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    seen = seen if network_is == 'rgb' else seen.flip(1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([10, 120, 200], [50, 60, 70]))
    torch.testing.assert_close(inputs, (seen - mean) / std)
    expected = network(inputs)[-1].mean((2, 3))
    # In mining, with images loaded as in training.
    images = PlainImages(config, 32)
    mined = build_encoder(config, tmp_path / 'w.pth', loaded_as=loading_order(images.transform))
    torch.testing.assert_close(mined.encode(default_collate([images[0]]))['features'], expected)
    # In evaluation, with images loaded as BGR.
    evaluated = build_encoder(config, tmp_path / 'w.pth')
    pipeline = Compose(EvaluationTransform(32).steps)
    batch = default_collate([pipeline(dict(img_path=str(tmp_path / 'images/a.png')))])
    torch.testing.assert_close(evaluated.encode(batch)['features'], expected)
    encoder = mm_sop.load(tmp_path / 'w.pth', image_size=32)
    torch.testing.assert_close(encoder(Image.fromarray(image))[0], expected)
    # Exports know it, or are refused.
    export(encoder, 'safetensors', tmp_path / 'exported', [Image.fromarray(image)])
    torch.testing.assert_close(mm_sop.load(tmp_path / 'exported')(Image.fromarray(image))[0], expected)
    export(encoder, 'mmpretrain', tmp_path / 'mmpretrain', [Image.fromarray(image)])
    assert Config.fromfile(tmp_path / 'mmpretrain/config.py').model.data_preprocessor.to_rgb == (network_is == 'rgb')
    if network_is == 'bgr':
        with pytest.raises(ExportError, match='cannot express a network that takes BGR; these can: mmpretrain, mmdet'):
            export(encoder, 'torchscript', tmp_path / 'program', [Image.fromarray(image)])


def test_networks_of_other_libraries_take_rgb_whatever_the_config_says(tmp_path):
    torch.save(VisionTransformer(32, 8, embed_dim=64, depth=1, num_heads=1).state_dict(), tmp_path / 'w.pth')
    config = channel_config({}, False, tmp_path)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    encoder = build_encoder(config, tmp_path / 'w.pth', 'timm')
    features = mm_sop.load(tmp_path / 'w.pth', source='timm', image_size=32)(images.flip(1))[0]
    torch.testing.assert_close(encoder.read(dict(inputs=images, data_samples=[])).global_features, features)


def test_contradicting_channel_orders_are_refused(tmp_path):
    config = channel_config(RGB, True, tmp_path)
    with pytest.raises(LaunchError, match='loaded as RGB .* set to_rgb=False, or leave channel_order out'):
        check_channels(config)
    save(tmp_path / 'w.pth', RESNET, meta=dict(cfg=config.pretty_text))
    with pytest.raises(ValueError, match='loaded as RGB'):
        mm_sop.load(tmp_path / 'w.pth')
    config = channel_config(RGB, False, tmp_path)
    bank = dict(type='LabeledImages', pipeline=[dict(type='LoadImage')])
    config.custom_hooks = [dict(type='KNNHook', bank=bank, queries={})]
    with pytest.raises(LaunchError, match='several orders of channels'):
        check_channels(config)
