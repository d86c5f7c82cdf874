"""Reading a labels argument: a file in any common format of class lists, a string of several labels, or data.

`read` decides which; `LabelSet.parse` takes its result. Guesses are noted for `LabelSet.warnings`.
"""

from densevl.vocabulary.reading.argument import read, words_in
from densevl.vocabulary.reading.files import read_data
from densevl.vocabulary.reading.notes import Notes

__all__ = ["read", "read_data", "words_in", "Notes"]
