# cascade-mask-rcnn_vit-small-p16_8xb2-1x_coco
_base_ = './cascade-mask-rcnn_vitb_1x_coco.py'
model = dict(
    backbone=dict(arch='deit-small', img_size=(800, 1008), drop_path_rate=0.1),
    neck=[
        dict(type='RescaledMaps', in_channels=384, norm_cfg=_base_.norm_cfg),
        dict(type='FPN', in_channels=[384, 384, 384, 384], out_channels=256, num_outs=5),
    ])
