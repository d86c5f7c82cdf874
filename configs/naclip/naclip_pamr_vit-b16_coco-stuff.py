_base_ = [
    "../_base_/run.py",
    "../_base_/datasets/coco-stuff.py",
    "../_base_/models/vit-b16_openai.py",
    "../_base_/recipes/naclip_pamr.py",
]
