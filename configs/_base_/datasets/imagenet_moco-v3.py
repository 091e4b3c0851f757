# BYOL's augmentations with the crops of MoCo v3, at least a fifth of the image.
_base_ = './imagenet_byol.py'

crop = dict(type='FastRandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0))
train_pipeline = [
    _base_.train_pipeline[0],
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[[crop, *_base_.view_transforms1], [crop, *_base_.view_transforms2]]),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
