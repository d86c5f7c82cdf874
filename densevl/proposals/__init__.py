"""Class-agnostic masks of an image: what regions can be made of. Importing this loads neither torch nor SAM."""
