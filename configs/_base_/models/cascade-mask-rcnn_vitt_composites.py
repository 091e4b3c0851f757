# iBOT's evaluation at a tenth of its size, on the ViT of configs/sop/vitt_composites.py: maps of three blocks.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

roi_strides = [4, 8, 16]
norm_cfg = dict(type='BN')
model = dict(
    # `--pretrained CHECKPOINT` sets it, `--pretrained none` removes it. The maps skip the final norm.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None, ignored=['ln1.']),
    backbone=dict(
        _delete_=True,
        type='WindowedVisionTransformer',
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=(128, 160),
        patch_size=8,
        stem='conv',
        window_size=None,
        out_indices=(1, 3, 5),
        final_norm=False),
    neck=[
        dict(type='RescaledMaps', in_channels=192, scales=(2, 1, 0.5)),
        dict(
            type='FPN',
            in_channels=[192, 192, 192],
            out_channels=64,
            num_outs=4,
            norm_cfg=dict(type='GN', num_groups=8)),
    ],
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=roi_strides, finest_scale=24),
        bbox_head=[
            dict(
                type='Shared4Conv1FCBBoxHead',
                in_channels=64,
                conv_out_channels=64,
                fc_out_channels=256,
                roi_feat_size=7,
                num_classes=10,
                norm_cfg=norm_cfg,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[0.1 / stage, 0.1 / stage, 0.2 / stage, 0.2 / stage]),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                loss_cls=dict(type='CrossEntropyLoss'),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0)) for stage in (1, 2, 3)
        ],
        mask_roi_extractor=dict(out_channels=64, featmap_strides=roi_strides, finest_scale=24),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=256, max_per_img=128),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=threshold,
                    neg_iou_thr=threshold,
                    min_pos_iou=threshold,
                    match_low_quality=False,
                    ignore_iof_thr=-1),
                sampler=dict(type='RandomSampler', num=64, pos_fraction=0.25),
                mask_size=28,
                pos_weight=-1,
                debug=False) for threshold in (0.5, 0.6, 0.7)
        ]),
    test_cfg=dict(rpn=dict(nms_pre=256, max_per_img=128), rcnn=dict(max_per_img=20)))
