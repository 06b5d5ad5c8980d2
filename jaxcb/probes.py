"""Further metrics of a run: probes of the training step, evaluators of the model, and metrics of the host.

    jc.fit(..., metrics={"grad_norm": jc.probes.grad_norm(every=100)})

Source of the update ratio: A. Karpathy, "A Recipe for Training Neural Networks"; about 1e-3 is healthy.
"""

from jaxcb._src.core.metrics import Reported, reported
from jaxcb._src.training.probes import (
    Evaluator,
    HostMetric,
    Probe,
    StepView,
    evaluator,
    grad_norm,
    host_metric,
    param_norm,
    update_norm,
    update_ratio,
)

__all__ = [
    "Evaluator",
    "HostMetric",
    "Probe",
    "Reported",
    "StepView",
    "evaluator",
    "grad_norm",
    "host_metric",
    "param_norm",
    "reported",
    "update_norm",
    "update_ratio",
]
