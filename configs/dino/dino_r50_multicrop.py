# dino_resnet50_8xb64-multicrop-bf16-coslr-100e_in1k: two views and six crops of 96 pixels.
_base_ = [
    '../_base_/models/co_dino_r50.py',
    '../_base_/datasets/imagenet_byol_multicrop.py',
    '../_base_/schedules/dino_lars.py',
    '../_base_/default_runtime.py',
]
model = dict(type='DINO', local_head=None)
train_dataloader = dict(batch_size=64)
