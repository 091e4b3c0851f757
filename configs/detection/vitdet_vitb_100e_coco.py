# vitdet_vit-base-p16_32xb2-lsj-100e_coco
_base_ = [
    '../_base_/models/vitdet_vitb.py',
    '../_base_/datasets/coco_instance_lsj1024.py',
    '../_base_/schedules/vitdet_100e.py',
    '../_base_/detection_runtime.py',
]
