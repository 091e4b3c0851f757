# finetune_vit-small-p16_8xb128-bf16-coslr-1000e_in1k-1percent: SimCLR's list of labels; iBOT's length and learning
# rate.
_base_ = './finetune_vits_in1k_10percent.py'
train_dataloader = dict(dataset=dict(dataset=dict(subset='data/imagenet/1percent.txt')))
