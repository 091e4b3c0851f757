# resa_resnet50_4xb256-amp-coslr-100e_in1k: the warm-up is longer than at a global batch of 256.
_base_ = [
    '../_base_/models/resa_resnet.py',
    '../_base_/datasets/resa_imagenet.py',
    '../_base_/schedules/resa_sgd.py',
    '../_base_/default_runtime.py',
]
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 10
param_scheduler[1].begin = 10
