"""Points in space to labels, by the posed photos that see them."""
