"""The built-in callbacks."""

from jaxcb._src.callbacks.backup_and_restore import BackupAndRestore
from jaxcb._src.callbacks.csv_logger import CSVLogger
from jaxcb._src.callbacks.early_stopping import EarlyStopping
from jaxcb._src.callbacks.freeze import Freeze
from jaxcb._src.callbacks.gradient_accumulation import GradientAccumulation
from jaxcb._src.callbacks.history import History
from jaxcb._src.callbacks.html_report import HTMLReport
from jaxcb._src.callbacks.hub_upload import HubUpload
from jaxcb._src.callbacks.json_logger import JSONLogger
from jaxcb._src.callbacks.lambda_callback import LambdaCallback
from jaxcb._src.callbacks.learning_rate_monitor import LearningRateMonitor
from jaxcb._src.callbacks.learning_rate_scheduler import LearningRateScheduler
from jaxcb._src.callbacks.log_to import LogTo
from jaxcb._src.callbacks.median_stopping import MedianStopping
from jaxcb._src.callbacks.mlflow_logger import MLflowLogger
from jaxcb._src.callbacks.model_checkpoint import ModelCheckpoint
from jaxcb._src.callbacks.model_summary import ModelSummary
from jaxcb._src.callbacks.norm_monitor import NormMonitor
from jaxcb._src.callbacks.population_based_training import PopulationBasedTraining
from jaxcb._src.callbacks.progress_bar import ProgressBar
from jaxcb._src.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from jaxcb._src.callbacks.remote_monitor import RemoteMonitor
from jaxcb._src.callbacks.spike_detection import SpikeDetection
from jaxcb._src.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from jaxcb._src.callbacks.stopping import StoppingCallback
from jaxcb._src.callbacks.successive_halving import SuccessiveHalving
from jaxcb._src.callbacks.swap_ema_weights import SwapEMAWeights
from jaxcb._src.callbacks.tensorboard import TensorBoard
from jaxcb._src.callbacks.terminate_on_nan import TerminateOnNaN
from jaxcb._src.callbacks.throughput import Throughput
from jaxcb._src.callbacks.timer import Timer
from jaxcb._src.callbacks.tracker_logger import TrackerLogger
from jaxcb._src.callbacks.trackio_logger import TrackioLogger
from jaxcb._src.callbacks.wandb_logger import WandbLogger
from jaxcb._src.core.callback import HOOKS
from jaxcb._src.core.chain import Chain
from jaxcb._src.training.train_state import NamedWeights

__all__ = [
    "HOOKS",
    "BackupAndRestore",
    "CSVLogger",
    "Chain",
    "EarlyStopping",
    "Freeze",
    "GradientAccumulation",
    "HTMLReport",
    "History",
    "HubUpload",
    "JSONLogger",
    "LambdaCallback",
    "LearningRateMonitor",
    "LearningRateScheduler",
    "LogTo",
    "MLflowLogger",
    "MedianStopping",
    "ModelCheckpoint",
    "ModelSummary",
    "NamedWeights",
    "NormMonitor",
    "PopulationBasedTraining",
    "ProgressBar",
    "ReduceLROnPlateau",
    "RemoteMonitor",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "StoppingCallback",
    "SuccessiveHalving",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
    "Throughput",
    "Timer",
    "TrackerLogger",
    "TrackioLogger",
    "WandbLogger",
]
