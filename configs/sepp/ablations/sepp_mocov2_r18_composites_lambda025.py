_base_ = '../sepp_mocov2_r18_composites.py'
model = dict(semantic_weight=0.25)
