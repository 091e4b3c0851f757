# Mask R-CNN with FPN on the narrow ResNet-18 of configs/sop/r18_composites.py, a tenth of the usual widths: its maps
# have strides 2, 4, 8 and 16, of which the last three are used.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
anchor_strides = [4, 8, 16, 32]
roi_strides = [4, 8, 16]
model = dict(
    # `--pretrained CHECKPOINT` sets it, `--pretrained none` removes it.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ResNet_CIFAR',
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(2, 2, 2, 2),
        out_indices=(1, 2, 3),
        zero_init_residual=False),
    neck=dict(in_channels=[32, 64, 128], out_channels=64, num_outs=4, norm_cfg=dict(type='GN', num_groups=8)),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[6], strides=anchor_strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=roi_strides, finest_scale=24),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64, featmap_strides=roi_strides, finest_scale=24),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=256, max_per_img=128),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=256, max_per_img=128), rcnn=dict(max_per_img=20)))
