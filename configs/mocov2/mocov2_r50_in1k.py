# mocov2_resnet50_8xb32-bf16-coslr-200e_in1k
_base_ = [
    '../_base_/models/mocov2.py',
    '../_base_/datasets/imagenet_mocov2.py',
    '../_base_/schedules/contrastive_sgd.py',
    '../_base_/default_runtime.py',
]
custom_hooks = []
