# cascade-mask-rcnn_vit-base-p16_8xb2-1x_coco
_base_ = [
    '../_base_/models/cascade-mask-rcnn_vitb.py',
    '../_base_/datasets/coco_instance_crops.py',
    '../_base_/schedules/detection_vit_1x.py',
    '../_base_/detection_runtime.py',
]
