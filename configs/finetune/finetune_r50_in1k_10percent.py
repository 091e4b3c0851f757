# finetune_resnet50_8xb32-bf16-coslr-20e_in1k-10percent: SimCLR's list of labels; ReSA's learning rates for encoder and
# classifier.
_base_ = './finetune_r50_in1k.py'
train_cfg = dict(max_epochs=20)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, nesterov=False),
    # 40 for the classifier, for a batch of 256
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=2e5))))
train_dataloader = dict(
    batch_size=32, dataset=dict(dataset=dict(type='ListedImages', subset='data/imagenet/10percent.txt')))
