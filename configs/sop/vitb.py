# sop_vit-base-p16_8xb128-bf16-coslr-400e_in1k: the released preset, multi-crop.
_base_ = [
    '../_base_/models/sop_vit.py',
    '../_base_/datasets/imagenet_sop.py',
    '../_base_/schedules/sop_400e.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(arch='base'), neck=dict(in_channels=768))
