# mask-rcnn_r18-narrow-c4_1xb8-4e_composites
_base_ = [
    '../_base_/models/mask-rcnn_r18_c4_composites.py',
    '../_base_/datasets/composites_scenes.py',
    '../_base_/schedules/detection_composites.py',
    '../_base_/detection_runtime.py',
]
