_base_ = [
    "../_base_/run.py",
    "../_base_/datasets/coco-object.py",
    "../_base_/models/vit-l14_openai.py",
    "../_base_/recipes/proxyclip.py",
]
