"""Results in other tools' formats: the contents for one photo (`contents`), and data sets of many (`kinds`)."""
