# Cascade Mask R-CNN with FPN on four blocks of a ViT-B/16 with global attention: iBOT's evaluation. The heads for boxes
# have four convolutions with synchronized BatchNorms and a GIoU loss.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # `--pretrained CHECKPOINT` sets it, `--pretrained none` removes it. The maps skip the final norm.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None, ignored=['ln1.']),
    backbone=dict(
        _delete_=True,
        type='WindowedVisionTransformer',
        arch='base',
        # The size of the learned position embedding; images have many sizes.
        img_size=(672, 1088),
        patch_size=16,
        window_size=None,
        out_indices=(3, 5, 7, 11),
        final_norm=False,
        drop_path_rate=0.2),
    neck=[
        dict(type='RescaledMaps', in_channels=768, norm_cfg=norm_cfg),
        dict(type='FPN', in_channels=[768, 768, 768, 768], out_channels=256, num_outs=5),
    ],
    roi_head=dict(
        bbox_head=[
            dict(
                type='Shared4Conv1FCBBoxHead',
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                norm_cfg=norm_cfg,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                loss_cls=dict(type='CrossEntropyLoss'),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0))
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ]))
