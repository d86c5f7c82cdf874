"""Label points in space by the posed photos that see them."""
