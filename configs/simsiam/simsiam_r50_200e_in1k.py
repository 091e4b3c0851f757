# simsiam_resnet50_8xb32-bf16-coslr-200e_in1k
_base_ = './simsiam_r50_in1k.py'
train_cfg = dict(max_epochs=200)
