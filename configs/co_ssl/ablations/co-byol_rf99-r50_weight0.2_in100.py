_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(local_head=dict(weight=0.2))
