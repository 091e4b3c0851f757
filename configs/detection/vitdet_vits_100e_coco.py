# vitdet_vit-small-p16_32xb2-lsj-100e_coco
_base_ = './vitdet_vitb_100e_coco.py'
model = dict(backbone=dict(arch='deit-small'), neck=dict(in_channels=384))
