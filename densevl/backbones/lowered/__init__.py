"""Linear layers with lowered weights, and running blocks of 8-bit layers in torch or in C compiled on first use."""
