"""What a labels argument is: a file in any of the formats that class lists have, a string of several, or data.

`read` decides; `LabelSet.parse` takes what it returns. What had to be guessed is noted for `LabelSet.warnings`.
"""

from densevl.vocabulary.reading.argument import read, words_in
from densevl.vocabulary.reading.files import read_data
from densevl.vocabulary.reading.notes import Notes

__all__ = ["read", "read_data", "words_in", "Notes"]
