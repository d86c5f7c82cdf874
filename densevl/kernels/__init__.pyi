# The names of the room, read at run time too, by `__init__.py`.

from .affinity import affinity_apply as affinity_apply
from .affinity import affinity_mean as affinity_mean
from .attention import gaussian_bias as gaussian_bias
from .attention import grid_attention as grid_attention
from .bias import Gaussian as Gaussian
from .bias import RelPos as RelPos
from .decode import dense_decode as dense_decode
from .decode import dense_scores as dense_scores
from .dispatch import Choice as Choice
from .dispatch import KernelError as KernelError
from .dispatch import KernelUnavailable as KernelUnavailable
from .dispatch import explain as explain
from .dispatch import use as use
from .mix import affinity_mix as affinity_mix
from .neighbours import nearest as nearest
from .resample import AxisPlan as AxisPlan
from .resample import DecodePlan as DecodePlan
