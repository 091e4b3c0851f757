# byol_resnet50_8xb256-bf16-coslr-100e_in1k: the base of CO-BYOL.
_base_ = [
    '../_base_/models/co_byol_r50.py',
    '../_base_/datasets/imagenet_byol.py',
    '../_base_/schedules/siamese_lars.py',
    '../_base_/default_runtime.py',
]
model = dict(type='SiameseBYOL', local_head=None)
