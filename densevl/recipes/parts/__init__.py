"""The parts of recipes, one file per kind of operation."""
