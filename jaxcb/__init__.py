"""jaxcb: the training loop and callbacks for JAX and Flax, as pure values."""

from jaxcb._actions import (
    Action,
    Average,
    Call,
    Checkpoint,
    ControlAction,
    Histogram,
    HostAction,
    Image,
    LogAction,
    Print,
    Progress,
    Remember,
    Restore,
    Row,
    Scalars,
    ScaleLearningRate,
    ScaleUpdates,
    SetControl,
    SetLearningRate,
    SkipUpdate,
    Snapshot,
    Stop,
    Swap,
    Text,
    fill,
    fired,
    stop_requested,
)
from jaxcb._callback import HOOKS, Callback, make_callback
from jaxcb._chain import Chain, chain
from jaxcb._errors import CallbackError, DataError, MissingMetricError
from jaxcb._metrics import Metrics
from jaxcb._schedules import adjustable_lr
from jaxcb._step import EvalStep, Out, Step
from jaxcb._struct import Struct, static
from jaxcb._train_state import NamedWeights, TrainState, apply
from jaxcb.callbacks import (
    CSVLogger,
    EarlyStopping,
    History,
    LambdaCallback,
    LearningRateScheduler,
    ProgressBar,
    ReduceLROnPlateau,
    TerminateOnNaN,
)
from jaxcb.fit import evaluate, fit, predict
from jaxcb.loop import Loop, Result, Run
from jaxcb.models.linen import linen
from jaxcb.models.pytree import with_state
from jaxcb.replay import Replay, replay
from jaxcb.writers import Writer, writer
