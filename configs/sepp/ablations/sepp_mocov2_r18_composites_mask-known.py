_base_ = '../sepp_mocov2_r18_composites.py'
model = dict(mask_known_positives=True)
