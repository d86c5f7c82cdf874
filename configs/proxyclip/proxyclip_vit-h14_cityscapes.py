_base_ = [
    "../_base_/run.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/models/vit-h14_laion2b.py",
    "../_base_/recipes/proxyclip.py",
]
