# resa_vit-small-p16_8xb128-amp-coslr-300e-multicrop_in1k: ten local crops beside the two views.
_base_ = [
    '../_base_/models/resa_vit.py',
    '../_base_/datasets/resa_imagenet_multicrop.py',
    '../_base_/schedules/resa_adamw.py',
    '../_base_/default_runtime.py',
]
