_base_ = [
    "../_base_/run.py",
    "../_base_/datasets/context60.py",
    "../_base_/models/vit-b16_openai.py",
    "../_base_/recipes/sfp.py",
]
