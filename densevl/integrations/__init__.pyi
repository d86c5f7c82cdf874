# The names of the room, read at run time too, by `__init__.py`.

from .cosine import CosinePredictor as CosinePredictor
from .cosine import replace_predictor as replace_predictor
from .hooks import RoiScores as RoiScores
from .hooks import roi_hook as roi_hook
from .labelling import label_detections as label_detections
from .scores import fused_probs as fused_probs
from .scores import objectness as objectness
from .torchvision import OpenVocabularyDetector as OpenVocabularyDetector
from .torchvision import candidates as candidates
from .torchvision import rescore as rescore
