# co-byol_rf99-resnet50 with multi-crop: six crops of 96 pixels for the student, whose cells are not used.
_base_ = [
    '../_base_/models/co_byol_r50.py',
    '../_base_/datasets/imagenet_byol.py',
    '../_base_/schedules/siamese_lars.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(_delete_=True, type='RFResNet', arch='rf99_even', norm_cfg=dict(type='SyncBN')))
small_crop = dict(type='FastRandomResizedCrop', scale=96, crop_ratio_range=(0.05, 0.14))
global_crop = dict(type='FastRandomResizedCrop', scale=224, crop_ratio_range=(0.14, 1.0))
small_transforms = [*_base_.color_transforms, dict(**_base_.blur, prob=0.5)]
train_pipeline = [
    _base_.train_pipeline[0],
    dict(
        type='MultiView',
        num_views=[1, 1, 6],
        transforms=[
            [global_crop, *_base_.view_transforms1],
            [global_crop, *_base_.view_transforms2],
            [small_crop, *small_transforms],
        ]),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
