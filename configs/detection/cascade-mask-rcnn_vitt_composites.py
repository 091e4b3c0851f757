# cascade-mask-rcnn_vit-tiny-p8_1xb8-4e_composites
_base_ = [
    '../_base_/models/cascade-mask-rcnn_vitt_composites.py',
    '../_base_/datasets/composites_scenes.py',
    '../_base_/schedules/detection_vit_composites.py',
    '../_base_/detection_runtime.py',
]
