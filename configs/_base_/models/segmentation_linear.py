# A linear classifier on a frozen encoder; model.frozen=False fine-tunes it.
model = dict(
    type='SemanticSegmentor',
    # `--pretrained CHECKPOINT` sets it, `--pretrained none` removes it.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None),
    frozen=True,
    head=dict(type='LinearSegmentationHead'))
