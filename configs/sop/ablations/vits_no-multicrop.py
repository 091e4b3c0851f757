# The recipe of vits.py on two global views of a larger part of the image, without local crops.
_base_ = [
    '../../_base_/models/sop_vit.py',
    '../../_base_/datasets/imagenet_sop_2views.py',
    '../../_base_/schedules/sop.py',
    '../../_base_/default_runtime.py',
]

train_cfg = dict(max_epochs=800)
