_base_ = '../vits.py'
model = dict(target_generator=None, mim_head=None)
