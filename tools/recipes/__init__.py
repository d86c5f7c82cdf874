"""The catalogue as a page, and its recipes measured on the shipped model."""
