"""jaxcb: the training loop and callbacks for JAX and Flax, as pure values."""

from jaxcb import distributed, probes
from jaxcb._actions import (
    Action,
    Average,
    Backup,
    Call,
    Checkpoint,
    Configuration,
    ControlAction,
    Embedding,
    Exploit,
    Figure,
    Graph,
    HandOver,
    Histogram,
    HostAction,
    HParams,
    Image,
    JSONLine,
    LogAction,
    MLflowLog,
    Post,
    Print,
    Profile,
    Progress,
    Remember,
    RequestAction,
    Restore,
    Row,
    Scalars,
    ScaleHyperparameter,
    ScaleLearningRate,
    ScaleUpdates,
    SetControl,
    SetLearningRate,
    SkipUpdate,
    Snapshot,
    Stop,
    Summarize,
    Swap,
    Text,
    WandbLog,
    fill,
    fired,
    stop_requested,
)
from jaxcb._callback import HOOKS, Callback, PopulationCallback, make_callback
from jaxcb._chain import Chain, chain
from jaxcb._errors import CallbackError, DataError, MissingMetricError, ProcessError
from jaxcb._loss import Out
from jaxcb._metrics import Metrics
from jaxcb._points import draws, grid, integers, log_uniform, uniform
from jaxcb._probe import Look, Probe, probe
from jaxcb._schedules import adjustable_lr
from jaxcb._step import EvalStep, Step
from jaxcb._struct import Struct, static
from jaxcb._train_state import NamedWeights, TrainState, apply
from jaxcb.callbacks import (
    BackupAndRestore,
    CSVLogger,
    EarlyStopping,
    Freeze,
    GradientAccumulation,
    History,
    JSONLogger,
    LambdaCallback,
    LearningRateMonitor,
    LearningRateScheduler,
    LogTo,
    MedianStopping,
    MLflowLogger,
    ModelCheckpoint,
    ModelSummary,
    NormMonitor,
    PopulationBasedTraining,
    ProgressBar,
    ReduceLROnPlateau,
    RemoteMonitor,
    SpikeDetection,
    StochasticWeightAveraging,
    SuccessiveHalving,
    SwapEMAWeights,
    TensorBoard,
    TerminateOnNaN,
    Throughput,
    Timer,
    WandbLogger,
)
from jaxcb.fit import evaluate, fit, predict
from jaxcb.host_callback import HostCallback
from jaxcb.load import load
from jaxcb.loop import Loop, Result, Run, last_result
from jaxcb.lr_find import LRFind, lr_find
from jaxcb.models.linen import linen
from jaxcb.models.pytree import with_state
from jaxcb.recorder import Recorder
from jaxcb.replay import Replay, replay
from jaxcb.summary import model_summary
from jaxcb.sweep import SweepResult, sweep
from jaxcb.writers import Writer, writer
