_base_ = '../sepp_simclr_r18_composites.py'
model = dict(mask_known_positives=True)
