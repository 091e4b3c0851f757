# co-byol_resnet18_4xb64-bf16-coslr-400e_in100: a cheap run.
_base_ = [
    '../_base_/models/co_byol_r50.py',
    '../_base_/datasets/imagenet_byol.py',
    '../_base_/schedules/siamese_lars_small.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(depth=18),
    neck=dict(in_channels=512),
    head=dict(predictor=dict(hid_channels=8192)),
    local_head=dict(projector=dict(in_channels=512), predictor=dict(hid_channels=8192)))
# 4 processes of 64 images
train_dataloader = dict(batch_size=64, dataset=dict(dataset=dict(data_root='data/imagenet100/train')))
