"""Settings chosen for the user's own pictures, and how certain the choice is.

From top to bottom: `run` has the one function, `tune`; `pictures` the contents of a folder; `candidates` the possible
settings; `counting` and `guessing` candidates on pictures, with truth and without; `ledger` the saved counts;
`selection` the choice and its cross-validation; `scores` the arithmetic; `result` the report.
"""

from densevl.tuning.result import Tuning
from densevl.tuning.run import tune

__all__ = ["Tuning", "tune"]
