# sop_vit-large-p16_8xb128-bf16-coslr-250e_in1k: the released preset, multi-crop.
_base_ = [
    '../_base_/models/sop_vit.py',
    '../_base_/datasets/imagenet_sop.py',
    '../_base_/schedules/sop_250e.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(arch='large'), neck=dict(in_channels=1024))
