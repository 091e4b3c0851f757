# BYOL's augmentations on two views of 224 pixels and six crops of 96, with the crops that DINO uses for ResNets.
_base_ = './imagenet_byol.py'

global_crop = dict(_base_.crop, crop_ratio_range=(0.14, 1.0))
small_crop = dict(_base_.crop, scale=96, crop_ratio_range=(0.05, 0.14))
views = [
    [global_crop, *_base_.view_transforms1],
    [global_crop, *_base_.view_transforms2],
    [small_crop, *_base_.color_transforms, _base_.blur],
]
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='FastMultiView', num_views=[1, 1, 6], transforms=views),
    _base_.train_pipeline[2],
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
