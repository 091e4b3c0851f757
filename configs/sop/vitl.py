# sop_vit-large-p16_8xb128-bf16-coslr-250e_in1k: the released preset, multi-crop.
_base_ = './vitb.py'
model = dict(backbone=dict(arch='large'), neck=dict(in_channels=1024))
train_cfg = dict(max_epochs=250)
