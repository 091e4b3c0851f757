# BYOL's augmentations with the crops that DINO uses for ResNets.
_base_ = './imagenet_byol.py'

crop = dict(_base_.crop, crop_ratio_range=(0.14, 1.0))
views = [[crop, *_base_.view_transforms1], [crop, *_base_.view_transforms2]]
train_pipeline = [_base_.train_pipeline[0], dict(_base_.train_pipeline[1], transforms=views), _base_.train_pipeline[2]]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
