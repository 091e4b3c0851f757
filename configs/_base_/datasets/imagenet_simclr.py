# Two views of 224 pixels with SimCLR's stronger crops and color changes. Works for any folder of images.
_base_ = './two_views.py'
data_root = 'data/imagenet/train'

jitter = dict(type='FastColorJitter', brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
view_pipeline = [
    _base_.crop,
    dict(_base_.color_jitter, transforms=[jitter]),
    _base_.grayscale,
    _base_.blur,
    _base_.flip,
]
train_pipeline = [
    # Larger photos are reduced while they are decoded: the smallest crop keeps twice the sides of its view.
    dict(type='LoadImage', min_pixels=3_400_000),
    dict(type='FastMultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128, pin_memory=True, dataset=dict(dataset=dict(data_root=data_root, pipeline=train_pipeline)))
