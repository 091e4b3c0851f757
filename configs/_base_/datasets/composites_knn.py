# k-NN on the composites during training: `seen`, known objects on unseen photos, and `test`, unseen objects on unseen
# photos.
classes_root = 'data/composites/classes'
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='Resize', scale=48, interpolation='area'),
    dict(type='PackInputs'),
]
knn_hook = dict(
    type='KNNHook',
    bank=dict(type='LabeledImages', data_root=classes_root + '/bank', pipeline=test_pipeline),
    queries=dict(
        seen=dict(type='LabeledImages', data_root=classes_root + '/seen', pipeline=test_pipeline),
        test=dict(type='LabeledImages', data_root=classes_root + '/test', pipeline=test_pipeline)),
    num_neighbors=[20],
    interval=1)
