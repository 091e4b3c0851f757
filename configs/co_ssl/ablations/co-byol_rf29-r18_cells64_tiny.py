# All 64 cells of the map.
_base_ = '../co-byol_rf29-r18_tiny.py'
model = dict(local_head=dict(num_cells=64))
