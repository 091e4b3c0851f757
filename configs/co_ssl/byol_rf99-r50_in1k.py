# byol_rf99-resnet50_8xb256-bf16-coslr-100e_in1k
_base_ = './co-byol_rf99-r50_in1k.py'
model = dict(type='SiameseBYOL', local_head=None)
