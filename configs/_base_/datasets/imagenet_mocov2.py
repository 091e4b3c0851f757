# Two views of 224 pixels: the augmentations of MoCo v2 and SimSiam. Works for any folder of images.
_base_ = './two_views.py'
data_root = 'data/imagenet/train'

view_pipeline = [
    dict(_base_.crop, crop_ratio_range=(0.2, 1.0)),
    dict(_base_.color_jitter, transforms=[dict(_base_.jitter, saturation=0.4)]),
    _base_.grayscale,
    _base_.blur,
    _base_.flip,
]
train_pipeline = [
    # Larger photos are reduced while they are decoded: the smallest crop keeps twice the sides of its view.
    dict(type='LoadImage', min_pixels=1_400_000),
    dict(type='FastMultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32, pin_memory=True, dataset=dict(dataset=dict(data_root=data_root, pipeline=train_pipeline)))
