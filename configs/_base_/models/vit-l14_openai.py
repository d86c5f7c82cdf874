model = "ViT-L-14/openai"
