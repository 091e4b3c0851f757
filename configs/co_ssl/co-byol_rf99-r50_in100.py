# co-byol_rf99-resnet50_4xb64-bf16-coslr-400e_in100: the ablations start from here.
_base_ = [
    '../_base_/models/co_byol_r50.py',
    '../_base_/datasets/imagenet_byol.py',
    '../_base_/schedules/siamese_lars_small.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(_delete_=True, type='RFResNet', arch='rf99_even', norm_cfg=dict(type='SyncBN')),
    head=dict(predictor=dict(hid_channels=8192)),
    local_head=dict(predictor=dict(hid_channels=8192)))
# 4 processes of 64 images
train_dataloader = dict(batch_size=64, dataset=dict(dataset=dict(data_root='data/imagenet100/train')))
