"""Ready-made probes: norms of gradients, updates and parameters.

    jc.fit(..., probes={"grad_norm": jc.probes.grad_norm(every=100)})

Source of the update ratio: A. Karpathy, "A Recipe for Training Neural Networks"; about 1e-3 is healthy.
"""

from jaxcb._src.training.probes import Probe, StepView, grad_norm, param_norm, update_norm, update_ratio

__all__ = [
    "Probe",
    "StepView",
    "grad_norm",
    "param_norm",
    "update_norm",
    "update_ratio",
]
