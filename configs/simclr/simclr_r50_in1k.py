# simclr_resnet50_8xb128-bf16-coslr-800e_in1k
_base_ = [
    '../_base_/models/simclr.py',
    '../_base_/datasets/imagenet_simclr.py',
    '../_base_/schedules/simclr_lars.py',
    '../_base_/default_runtime.py',
]
sync_bn = 'torch'
custom_hooks = []
