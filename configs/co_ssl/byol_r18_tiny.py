# byol_resnet18_1xb256-bf16-coslr-400e_tiny-imagenet
_base_ = './co-byol_r18_tiny.py'
model = dict(type='SiameseBYOL', local_head=None)
