# Nine cells drawn without replacement, to compare with the grid of `cells9`.
_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(local_head=dict(num_cells=9, selection='uniform'))
