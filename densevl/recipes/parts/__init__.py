"""The parts of recipes, one file a kind of operation."""
