"""Results in the files of other tools: what they hold of a photo (`contents`), and data sets of many (`kinds`)."""
