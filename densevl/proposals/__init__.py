"""Class-agnostic masks of an image, from which regions are made. Importing this loads neither torch nor SAM."""

from densevl.errors import ProposalError
from densevl.proposals.base import Proposals, Proposer
from densevl.proposals.load import NAMES, given, load_proposer

__all__ = ["load_proposer", "given", "Proposals", "Proposer", "ProposalError", "NAMES"]
