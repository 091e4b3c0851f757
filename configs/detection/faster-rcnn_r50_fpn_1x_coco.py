# faster-rcnn_r50-fpn_8xb2-ms-1x_coco: boxes only.
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'
model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))

train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = False
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
