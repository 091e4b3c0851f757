# byol_resnet18_4xb64-bf16-coslr-400e_in100
_base_ = './co-byol_r18_in100.py'
model = dict(type='SiameseBYOL', local_head=None)
