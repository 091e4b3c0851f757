# Mask R-CNN on the third-stage map of the narrow ResNet-18 of configs/sop/r18_composites.py, stride 8; the last stage
# is the head, with one more BatchNorm.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50-caffe-c4.py'

network = dict(
    type='mmpretrain.ResNet_CIFAR',
    depth=18,
    base_channels=16,
    stem_channels=16,
    strides=(2, 2, 2, 2),
    zero_init_residual=False)
model = dict(
    # `--pretrained CHECKPOINT` sets it, `--pretrained none` removes it.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None, ignored=['norm.']),
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _delete_=True, **dict(network, num_stages=3, strides=(2, 2, 2), dilations=(1, 1, 1), out_indices=(2, ))),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[3, 6, 12], strides=[8])),
    roi_head=dict(
        shared_head=dict(_delete_=True, type='ResNetStage', network=network, norm_cfg=dict(type='BN')),
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=[8]),
        bbox_head=dict(in_channels=128, num_classes=10),
        mask_head=dict(in_channels=128, conv_out_channels=64, num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=256, max_per_img=128),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=256, max_per_img=128), rcnn=dict(max_per_img=20)))
