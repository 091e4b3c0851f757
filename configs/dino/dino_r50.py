# dino_resnet50_8xb64-bf16-coslr-100e_in1k: two views, the base of CO-DINO.
_base_ = [
    '../_base_/models/co_dino_r50.py',
    '../_base_/datasets/imagenet_dino_2views.py',
    '../_base_/schedules/dino_lars.py',
    '../_base_/default_runtime.py',
]
model = dict(type='DINO', local_head=None)
train_dataloader = dict(batch_size=64)
