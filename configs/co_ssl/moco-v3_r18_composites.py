# MoCo v3 on photo composites.
_base_ = './co-moco-v3_r18_composites.py'
model = dict(type='SiameseMoCoV3', local_head=None)
