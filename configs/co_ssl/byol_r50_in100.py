# byol_resnet50_4xb64-bf16-coslr-400e_in100
_base_ = './co-byol_r50_in100.py'
model = dict(type='SiameseBYOL', local_head=None)
