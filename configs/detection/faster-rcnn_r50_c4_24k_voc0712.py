# faster-rcnn_r50-c4_8xb2-ms-24k_voc0712: MoCo's evaluation on PASCAL VOC.
_base_ = [
    '../_base_/models/mask-rcnn_r50_c4.py',
    '../_base_/datasets/voc0712_ms.py',
    '../_base_/schedules/detection_1x.py',
    '../_base_/detection_runtime.py',
]
model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(mask_roi_extractor=None, bbox_head=dict(num_classes=20), mask_head=None))

train_cfg = dict(max_epochs=None, max_iters=24000, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=24000, milestones=[18000, 22000], gamma=0.1),
]
