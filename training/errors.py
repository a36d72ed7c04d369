"""Everything that can be wrong with a training job.

TrainingError
├── RecipeError        a recipe, a setting or a name that does not exist or is out of range
├── DataError          a data set that is missing, damaged or mis-shaped
├── ResumeError        no run to resume, another run's state, or a run folder in use
├── DivergenceError    parameters that became infinite or NaN
└── Interrupted        stopped on request after a whole step; the state is saved
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of the errors that `training` raises on purpose. The message is meant for the user."""


class RecipeError(TrainingError):
    """The recipe cannot be used as it stands; the message says what was expected."""


class DataError(TrainingError):
    """The data cannot be used as they stand; the message says what was expected."""


class ResumeError(TrainingError):
    """The run cannot be started or continued here."""


class DivergenceError(TrainingError):
    """Training diverged."""


class Interrupted(TrainingError):  # noqa: N818 - a request that was met, not a fault
    """Training stopped on request; what it needs to go on is saved."""
