# resa_resnet50_8xb128-amp-coslr-100e-multicrop_in1k: ten local crops beside the two views, a global batch of 1,024.
_base_ = [
    '../_base_/models/resa_resnet.py',
    '../_base_/datasets/resa_imagenet_multicrop.py',
    '../_base_/schedules/resa_sgd.py',
    '../_base_/default_runtime.py',
]
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 10
param_scheduler[1].begin = 10
