_base_ = [
    "../_base_/run.py",
    "../_base_/datasets/voc20.py",
    "../_base_/models/vit-h14_laion2b.py",
    "../_base_/recipes/proxyclip.py",
]
