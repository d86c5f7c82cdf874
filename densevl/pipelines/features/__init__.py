"""Photos to dense features, and points in space to labels by the photos that see them."""
