# resa_vit-small-p16_4xb256-amp-coslr-300e_in1k
_base_ = [
    '../_base_/models/resa_vit.py',
    '../_base_/datasets/resa_imagenet.py',
    '../_base_/schedules/resa_adamw.py',
    '../_base_/default_runtime.py',
]
