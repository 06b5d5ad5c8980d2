"""The vocabulary of actions: what a callback can ask for, as data."""

from jaxcb._actions._base import Action, ControlAction, HostAction, LogAction
from jaxcb._actions._control import (
    Average,
    Exploit,
    Restore,
    ScaleHyperparameter,
    ScaleLearningRate,
    ScaleUpdates,
    SetControl,
    SetLearningRate,
    SkipUpdate,
    Snapshot,
    Stop,
    Swap,
    WeightAction,
)
from jaxcb._actions._embedding import Embedding
from jaxcb._actions._facts import Configuration, Graph, HParams
from jaxcb._actions._figure import Figure
from jaxcb._actions._host import Backup, Call, Checkpoint, Profile, Summarize
from jaxcb._actions._log import (
    HandOver,
    JSONLine,
    MLflowLog,
    Post,
    Print,
    Progress,
    Remember,
    ReportAction,
    Row,
    WandbLog,
)
from jaxcb._actions._request import RequestAction
from jaxcb._actions._series import Histogram, Image, Scalars, SeriesAction, TensorBoardAction, Text
from jaxcb._actions._use import PLACES, as_actions, fill, fired, stop_requested, template_names
