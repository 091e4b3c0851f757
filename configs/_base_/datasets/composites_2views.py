# The two views of composites.py without masks.
_base_ = './composites.py'

train_pipeline = [*_base_.train_pipeline[:2], dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
