# The names of the room, read at run time too, by `__init__.py`.

from .finite import require_finite as require_finite
from .fitting import WAY_OUT as WAY_OUT
from .fitting import Undrawn as Undrawn
from .fitting import assign as assign
from .fitting import build_strictly as build_strictly
from .fitting import load_strictly as load_strictly
from .fitting import require_buildable as require_buildable
from .fitting import require_fit as require_fit
from .fitting import require_sizes as require_sizes
from .reading import SUFFIXES as SUFFIXES
from .reading import Checkpoint as Checkpoint
from .reading import State as State
from .reading import bad_file as bad_file
from .reading import below as below
from .reading import read_checkpoint as read_checkpoint
