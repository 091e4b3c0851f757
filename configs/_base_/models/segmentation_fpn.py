# A small decoder on a feature pyramid; the encoder is fine-tuned, model.frozen=True freezes it.
model = dict(
    type='SemanticSegmentor',
    # `--pretrained CHECKPOINT` sets it, `--pretrained none` removes it.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None),
    neck=dict(type='mmdet.FPN', out_channels=256, num_outs=4),
    head=dict(type='FPNSegmentationHead', in_channels=[256] * 4))
