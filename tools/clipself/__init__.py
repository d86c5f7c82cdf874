"""CLIPSelf (Wu et al., ICLR 2024): a model's dense features learn from its own embeddings of crops, without labels."""
