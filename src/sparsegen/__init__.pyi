from .export.onnx_file import export_onnx as export_onnx
from .export.runtime import OnnxSampler as OnnxSampler
from .export.runtime import open_sampler as open_sampler
from .export.web.page import export_web as export_web
from .restoration.restore import Restoration as Restoration
from .restoration.restore import restore as restore
from .training.measure import Measurement as Measurement
from .training.measure import evaluate as evaluate
from .training.run import Run as Run
from .training.start import TrainConfig as TrainConfig
from .training.start import train as train
from .zoo.architectures import Architecture as Architecture
from .zoo.bundled import list_models as list_models
from .zoo.checkpoint import from_pretrained as from_pretrained
from .zoo.generator import Generator as Generator
from .zoo.projections import GlobalProjection as GlobalProjection
from .zoo.projections import NeedleProjection as NeedleProjection
from .zoo.projections import sparsify as sparsify
from .zoo.registry import get_architecture as get_architecture
from .zoo.registry import get_regularizer as get_regularizer
from .zoo.registry import list_architectures as list_architectures
from .zoo.registry import list_regularizers as list_regularizers
from .zoo.registry import register_architecture as register_architecture
from .zoo.registry import register_regularizer as register_regularizer
from .zoo.regularizers import Regularizer as Regularizer
from .zoo.spec import create_model as create_model

__version__: str
