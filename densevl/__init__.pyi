# The public names of densevl: what `from densevl import *` gives. Read at run time too, by `__init__.py`.

from . import backbones as backbones
from . import evaluation as evaluation
from . import fewshot as fewshot
from . import images as images
from . import inference as inference
from . import integrations as integrations
from . import kernels as kernels
from . import recipes as recipes
from . import regions as regions
from . import vocabulary as vocabulary
from .anomaly.result import AnomalyResult as AnomalyResult
from .backbones.load import load_backbone as load_backbone
from .backbones.proxies.load import load_proxy as load_proxy
from .devices import keep_memory as keep_memory
from .errors import DensevlError as DensevlError
from .fewshot.result import Classification as Classification
from .pipelines.anomaly.adaptation import train_adapters as train_adapters
from .pipelines.anomaly.detector import AnomalyDetector as AnomalyDetector
from .pipelines.features.extractor import FeatureExtractor as FeatureExtractor
from .pipelines.features.result import DenseMap as DenseMap
from .pipelines.fewshot.classifier import FewShot as FewShot
from .pipelines.fewshot.session import LabelSession as LabelSession
from .pipelines.points.cameras import View as View
from .pipelines.points.labeller import PointLabeller as PointLabeller
from .pipelines.points.labeller import PointLabels as PointLabels
from .pipelines.rasters.result import BlockSegmenter as BlockSegmenter
from .pipelines.regions.banking import BankBuilder as BankBuilder
from .pipelines.regions.classifier import RegionClassifier as RegionClassifier
from .pipelines.regions.search import RegionSearch as RegionSearch
from .pipelines.segmentation.concepts import Concepts as Concepts
from .pipelines.segmentation.ensemble import Ensemble as Ensemble
from .pipelines.segmentation.segmenter import Segmenter as Segmenter
from .pipelines.video.result import VideoSegmenter as VideoSegmenter
from .proposals.base import Proposals as Proposals
from .proposals.decoded import Decoded as Decoded
from .proposals.load import load_proposer as load_proposer
from .recipes.recipe import Recipe as Recipe
from .regions.bank import Bank as Bank
from .regions.result import RegionResult as RegionResult
from .results.segmentation import SegmentationResult as SegmentationResult
from .vocabulary.descriptors import Descriptors as Descriptors
from .vocabulary.labels import LabelSet as LabelSet
from .vocabulary.options import TextOptions as TextOptions

__version__: str
