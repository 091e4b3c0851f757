# Cascade Mask R-CNN with FPN on four blocks of a ViT-B/16 with global attention, as in iBOT's evaluation.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
model = dict(
    # `--pretrained CHECKPOINT` fills it in, `--pretrained none` takes it away.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None),
    backbone=dict(
        _delete_=True,
        type='WindowedVisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        window_size=None,
        out_indices=(3, 5, 7, 11),
        drop_path_rate=0.1),
    neck=[
        dict(type='RescaledMaps', in_channels=768),
        dict(
            type='FPN',
            in_channels=[768, 768, 768, 768],
            out_channels=256,
            num_outs=5),
    ])
