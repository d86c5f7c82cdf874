"""Linear layers with lowered weights, and how a block of 8-bit ones runs: in torch, or by C compiled on first use."""
