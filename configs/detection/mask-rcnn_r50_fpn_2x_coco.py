# mask-rcnn_r50-fpn_8xb2-ms-2x_coco
_base_ = [
    '../_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/detection_2x.py',
    '../_base_/detection_runtime.py',
]
