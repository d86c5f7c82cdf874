"""Reading mmengine configs: the one place where a config, which is a Python program, is executed.

A config names an experiment; everyday evaluation takes an `Experiment` and needs none. Configs outside the clone that
this package lies in are executed with a warning, because whoever wrote one can run anything with it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from densevl.errors import EvaluationError, MissingExtraError
from densevl.evaluation.experiment import Experiment
from densevl.files import shown

OWN = Path(__file__).parents[2] / "configs"
"""The configs of a clone."""
_LOG = logging.getLogger(__name__)


def load_experiment(path: str | Path, changes: dict[str, Any] | None = None) -> Experiment:
    """Execute a config and read its experiment.

    Args:
        path: a Python file in mmengine's config format, with `_base_` for inheritance; its variables are the fields of
            `Experiment`.
        changes: fields that replace the config's.

    Raises:
        MissingExtraError: mmengine is not installed.
        EvaluationError: no such file, an error inside it, or variables that an experiment does not have.
    """
    try:
        from mmengine.config import Config
    except ImportError as error:
        raise MissingExtraError("mmengine", "eval", "reading a config") from error
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"no config {shown(path)}: give a file of configs/, or densevl eval run with options")
    if not path.resolve().is_relative_to(OWN.resolve()):
        _LOG.warning("%s is executed as a Python program: run only configs that you trust", shown(path))
    try:
        config = Config.fromfile(str(path), lazy_import=False)
    except Exception as error:  # a config can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EvaluationError(f"config {shown(path)} cannot be read: {reason}") from error
    return Experiment.parse({**config.to_dict(), **(changes or {})})
