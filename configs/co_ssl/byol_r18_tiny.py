# byol_resnet18_1xb256-bf16-coslr-400e_tiny-imagenet
_base_ = [
    '../_base_/models/co_byol_r18_small.py',
    '../_base_/datasets/tiny-imagenet_byol.py',
    '../_base_/schedules/siamese_lars_small.py',
    '../_base_/default_runtime.py',
]
model = dict(type='SiameseBYOL', local_head=None)
optim_wrapper = dict(optimizer=dict(lr=1.0, weight_decay=1e-5))
