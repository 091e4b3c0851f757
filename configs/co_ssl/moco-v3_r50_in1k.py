# moco-v3_resnet50_8xb256-bf16-coslr-100e_in1k: the base of CO-MoCoV3.
_base_ = [
    '../_base_/models/co_moco-v3_r50.py',
    '../_base_/datasets/imagenet_moco-v3.py',
    '../_base_/schedules/siamese_lars.py',
    '../_base_/default_runtime.py',
]
model = dict(type='SiameseMoCoV3', local_head=None)
optim_wrapper = dict(optimizer=dict(lr=0.6))
