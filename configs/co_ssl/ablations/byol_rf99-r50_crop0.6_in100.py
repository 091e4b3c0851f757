# Crops of at least 0.6 of the image.
_base_ = '../byol_rf99-r50_in100.py'
train_pipeline = _base_.train_pipeline
for view in train_pipeline[1].transforms:
    view[0].crop_ratio_range = (0.6, 1.0)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
