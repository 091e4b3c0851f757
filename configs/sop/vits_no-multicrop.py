# Two global views of a larger part of the picture, no local crops: the released default.
_base_ = [
    '../_base_/models/sop_vit.py',
    '../_base_/datasets/imagenet_sop_2views.py',
    '../_base_/schedules/sop.py',
    '../_base_/default_runtime.py',
]
