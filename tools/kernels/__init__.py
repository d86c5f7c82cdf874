"""Facts about the kernels that need no GPU: what they compile to, and how the torch paths compare on the CPU."""
