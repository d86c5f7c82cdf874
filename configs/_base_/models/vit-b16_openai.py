model = "ViT-B-16/openai"
