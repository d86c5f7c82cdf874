model = "ViT-H-14/laion2b_s32b_b79k"
