"""The built-in callbacks: one a file, pure, and each in `REGISTRY`, which the laws test."""

from jaxcb.callbacks._csv_logger import CSVLogger
from jaxcb.callbacks._early_stopping import EarlyStopping
from jaxcb.callbacks._history import History
from jaxcb.callbacks._lambda_callback import LambdaCallback
from jaxcb.callbacks._learning_rate_scheduler import LearningRateScheduler
from jaxcb.callbacks._progress_bar import ProgressBar
from jaxcb.callbacks._reduce_lr_on_plateau import ReduceLROnPlateau
from jaxcb.callbacks._terminate_on_nan import TerminateOnNaN

__all__ = [
    "CSVLogger",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "ProgressBar",
    "ReduceLROnPlateau",
    "TerminateOnNaN",
]
