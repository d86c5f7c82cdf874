"""Facts about the kernels without a GPU: what they compile to, and how the torch paths compare on the CPU."""
