# sop_vit-small-p16_8xb128-bf16-coslr-800e_in1k: the released preset, multi-crop.
_base_ = [
    '../_base_/models/sop_vit.py',
    '../_base_/datasets/imagenet_sop.py',
    '../_base_/schedules/sop.py',
    '../_base_/default_runtime.py',
]

train_cfg = dict(max_epochs=800)
