"""Steps of a block in C, compiled on first use, or the same in torch where there is no compiler: `compiling.steps`."""
