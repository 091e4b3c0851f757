# Two views of 224 pixels with BYOL's unequal augmentations. Works for any folder of images: only `data_root` changes.
_base_ = './two_views.py'
data_root = 'data/imagenet/train'

color_transforms = [_base_.flip, _base_.color_jitter, _base_.grayscale]
view_transforms1 = [*color_transforms, dict(_base_.blur, prob=1.0)]
view_transforms2 = [*color_transforms, dict(_base_.blur, prob=0.1), _base_.solarize]
train_pipeline = [
    # Larger photos are reduced while they are decoded: the smallest crop keeps twice the sides of its view.
    dict(type='LoadImage', min_pixels=3_400_000),
    dict(
        type='FastMultiView',
        num_views=[1, 1],
        transforms=[[_base_.crop, *view_transforms1], [_base_.crop, *view_transforms2]]),
    dict(type='PackInputs'),
]
train_dataloader = dict(pin_memory=True, dataset=dict(dataset=dict(data_root=data_root, pipeline=train_pipeline)))
