# mocov2_resnet50_8xb32-bf16-coslr-800e_in1k
_base_ = './mocov2_r50_in1k.py'
train_cfg = dict(max_epochs=800)
