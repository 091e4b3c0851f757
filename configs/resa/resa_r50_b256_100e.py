# resa_resnet50_1xb256-amp-coslr-100e_in1k: one GPU with 256 images, or two with 128 each.
_base_ = [
    '../_base_/models/resa_resnet.py',
    '../_base_/datasets/resa_imagenet.py',
    '../_base_/schedules/resa_sgd.py',
    '../_base_/default_runtime.py',
]
