"""The built-in callbacks: one a file, pure, and each in `REGISTRY`, which the laws test."""

from jaxcb.callbacks._backup_and_restore import BackupAndRestore
from jaxcb.callbacks._csv_logger import CSVLogger
from jaxcb.callbacks._early_stopping import EarlyStopping
from jaxcb.callbacks._freeze import Freeze
from jaxcb.callbacks._gradient_accumulation import GradientAccumulation
from jaxcb.callbacks._history import History
from jaxcb.callbacks._json_logger import JSONLogger
from jaxcb.callbacks._lambda_callback import LambdaCallback
from jaxcb.callbacks._learning_rate_monitor import LearningRateMonitor
from jaxcb.callbacks._learning_rate_scheduler import LearningRateScheduler
from jaxcb.callbacks._log_to import LogTo
from jaxcb.callbacks._median_stopping import MedianStopping
from jaxcb.callbacks._mlflow_logger import MLflowLogger
from jaxcb.callbacks._model_checkpoint import ModelCheckpoint
from jaxcb.callbacks._model_summary import ModelSummary
from jaxcb.callbacks._norm_monitor import NormMonitor
from jaxcb.callbacks._population_based_training import PopulationBasedTraining
from jaxcb.callbacks._progress_bar import ProgressBar
from jaxcb.callbacks._reduce_lr_on_plateau import ReduceLROnPlateau
from jaxcb.callbacks._remote_monitor import RemoteMonitor
from jaxcb.callbacks._spike_detection import SpikeDetection
from jaxcb.callbacks._stochastic_weight_averaging import StochasticWeightAveraging
from jaxcb.callbacks._successive_halving import SuccessiveHalving
from jaxcb.callbacks._swap_ema_weights import SwapEMAWeights
from jaxcb.callbacks._tensorboard import TensorBoard
from jaxcb.callbacks._terminate_on_nan import TerminateOnNaN
from jaxcb.callbacks._throughput import Throughput
from jaxcb.callbacks._timer import Timer
from jaxcb.callbacks._wandb_logger import WandbLogger

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "EarlyStopping",
    "Freeze",
    "GradientAccumulation",
    "History",
    "JSONLogger",
    "LambdaCallback",
    "LearningRateMonitor",
    "LearningRateScheduler",
    "LogTo",
    "MLflowLogger",
    "MedianStopping",
    "ModelCheckpoint",
    "ModelSummary",
    "NormMonitor",
    "PopulationBasedTraining",
    "ProgressBar",
    "ReduceLROnPlateau",
    "RemoteMonitor",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "SuccessiveHalving",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
    "Throughput",
    "Timer",
    "WandbLogger",
]
