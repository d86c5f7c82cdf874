# The names of the room, read at run time too, by `__init__.py`.

from .at_hand import available as available
from .base import Backbone as Backbone
from .load import load_backbone as load_backbone
from .projected.mixing import mix as mix
from .protocol import InferenceProtocol as InferenceProtocol
