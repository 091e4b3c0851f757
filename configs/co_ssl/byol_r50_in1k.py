# byol_resnet50_8xb256-bf16-coslr-100e_in1k: the base of CO-BYOL.
_base_ = './co-byol_r50_in1k.py'
model = dict(type='SiameseBYOL', local_head=None)
