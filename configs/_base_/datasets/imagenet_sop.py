# Two global views of 224 pixels and ten local ones of 96: the augmentations of SOP, which are those of iBOT.
# Works for any folder of images: only `data_root` changes.
_base_ = './two_views.py'
data_root = 'data/imagenet/train'

# Crops of iBOT for ViT-B and ViT-L, of MaSSL for all sizes; for ViT-S iBOT has (0.25, 1.0) and (0.05, 0.25).
global_crop = dict(_base_.crop, crop_ratio_range=(0.32, 1.0))
local_crop = dict(_base_.crop, scale=96, crop_ratio_range=(0.05, 0.32))
color_transforms = [_base_.flip, _base_.color_jitter, _base_.grayscale]
global_pipeline1 = [global_crop, *color_transforms, dict(_base_.blur, prob=1.0)]
global_pipeline2 = [global_crop, *color_transforms, dict(_base_.blur, prob=0.1), _base_.solarize]
local_pipeline = [local_crop, *color_transforms, _base_.blur]

train_pipeline = [
    # Larger photos are reduced while they are decoded: the smallest crop keeps twice the sides of its view.
    dict(type='LoadImage', min_pixels=1_000_000),
    dict(type='FastMultiView', num_views=[1, 1, 10], transforms=[global_pipeline1, global_pipeline2, local_pipeline]),
    # iBOT's recipe: half of the views unmasked, the others with 10 to 50 % of the patches masked.
    # The released SOP code: mask_ratio=0.3, mask_ratio_jitter=0.0
    dict(type='BlockMaskGenerator', grid=(14, 14), mask_ratio=(0.0, 0.3), mask_ratio_jitter=(0.0, 0.2)),
    # As an algorithm key the mask stays an array on the host, where the model computes the masked positions.
    dict(type='PackInputs', algorithm_keys=['mask']),
]
train_dataloader = dict(
    batch_size=128, pin_memory=True, dataset=dict(dataset=dict(data_root=data_root, pipeline=train_pipeline)))
