"""Settings chosen for the user's own pictures, and how sure the choice is.

It reads from top to bottom: `run` has the one function, `tune`; `pictures` what a folder holds; `candidates` what may
be chosen; `counting` and `guessing` candidates on pictures, with a truth and without; `ledger` what was counted;
`selection` the choice and its cross-validation; `scores` the arithmetic; `result` what is said and written.
"""

from densevl.tuning.result import Tuning
from densevl.tuning.run import tune

__all__ = ["Tuning", "tune"]
