# co-byol_rf99-resnet50 with multi-crop: six crops of 96 pixels for the student, whose cells are not used.
_base_ = [
    '../_base_/models/co_byol_r50.py',
    '../_base_/datasets/imagenet_byol_multicrop.py',
    '../_base_/schedules/siamese_lars.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(_delete_=True, type='RFResNet', arch='rf99_even', norm_cfg=dict(type='SyncBN')))
