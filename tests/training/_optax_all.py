"""Every transformation of `optax` and `optax.contrib`, built with simple arguments."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

INNER = "optax.sgd(0.05)"
ALL = "value=loss, grad=grads, value_fn=loss_fn"
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = X @ np.float32([1.0, -2.0, 0.5]) + 0.25


def start(path: str) -> Any:
    """The parameters that a case begins with."""
    # no zeros, from which rules that scale by the parameters do not move
    params = {"w": jnp.full((3, 1), 0.5), "b": jnp.full((1,), 0.1)}
    return optax.LookaheadParams.init_synced(params) if path == "lookahead" else params


def loss_fn(params: Any, batch: Any) -> Any:
    params = getattr(params, "fast", params)
    x, y = batch
    return jnp.mean((jnp.squeeze(x @ params["w"], -1) + params["b"] - y) ** 2)


class Case(NamedTuple):
    """A transformation that is tried.

    Attributes:
        call: how it is built, as Python.
        extra: what a loop by hand passes to `update` besides gradients, state and parameters.
        note: what to know of it in `fit`.
    """

    call: str
    extra: str = ""
    note: str = ""


# Those that need more than a learning rate. All others are built by `_simple`.
SPECIAL = {
    "adaptive_grad_clip": Case(f"optax.chain(optax.adaptive_grad_clip(0.1), {INNER})"),
    "add_noise": Case(f"optax.chain(optax.add_noise(0.01, 0.5, key=0), {INNER})"),
    "apply_if_finite": Case(f"optax.apply_if_finite({INNER}, 3)"),
    "chain": Case(f"optax.chain(optax.clip(1.0), {INNER})"),
    "clip": Case(f"optax.chain(optax.clip(0.5), {INNER})"),
    "clip_by_block_rms": Case(f"optax.chain(optax.clip_by_block_rms(0.5), {INNER})"),
    "clip_by_global_norm": Case(f"optax.chain(optax.clip_by_global_norm(0.5), {INNER})"),
    "conditionally_mask": Case(f"optax.conditionally_mask({INNER}, lambda step: step > 0)"),
    "conditionally_transform": Case(f"optax.conditionally_transform({INNER}, lambda step: step > 0)"),
    "ema": Case(f"optax.chain(optax.ema(0.9), {INNER})"),
    "flatten": Case(f"optax.flatten({INNER})"),
    "freeze": Case(f'optax.chain({INNER}, optax.freeze({{"w": True, "b": False}}))'),
    "inject_hyperparams": Case("optax.inject_hyperparams(optax.adam)(learning_rate=0.05)"),
    "inject_stateful_hyperparams": Case("optax.inject_stateful_hyperparams(optax.adam)(learning_rate=0.05)"),
    "lookahead": Case(
        f"optax.lookahead({INNER}, 2, 0.5)",
        note="the model is `optax.LookaheadParams.init_synced(params)`, and the loss function uses `model.fast`",
    ),
    "MultiSteps": Case(f"optax.MultiSteps({INNER}, 3)", note="each third step applies an update"),
    "masked": Case(f'optax.chain(optax.masked(optax.clip(0.1), {{"w": True, "b": False}}), {INNER})'),
    "measure_with_ema": Case(f"optax.chain(optax.measure_with_ema(lambda updates, *_, **__: updates, 0.9), {INNER})"),
    "monitor": Case(f'optax.chain(optax.monitor({{"norm": optax.tree.norm}}), {INNER})'),
    "multi_transform": Case(f'optax.multi_transform({{"a": {INNER}, "b": optax.adam(0.05)}}, {{"w": "a", "b": "b"}})'),
    "named_chain": Case(f'optax.named_chain(("clip", optax.clip(1.0)), ("sgd", {INNER}))'),
    "partition": Case(f'optax.partition({{"a": {INNER}, "b": optax.adam(0.05)}}, {{"w": "a", "b": "b"}})'),
    "scale": Case("optax.scale(-0.05)"),
    "scale_by_backtracking_linesearch": Case(
        "optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5))", ALL
    ),
    "scale_by_zoom_linesearch": Case("optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(5))", ALL),
    "lbfgs": Case("optax.lbfgs()", ALL, "one batch is the whole of the data: a line search compares losses"),
    "polyak_sgd": Case("optax.polyak_sgd()", "value=loss"),
    "scale_by_polyak": Case("optax.chain(optax.scale_by_polyak(), optax.scale(-1.0))", "value=loss"),
    "scale_by_schedule": Case("optax.scale_by_schedule(lambda count: -0.1 / (count + 1))"),
    "selective_transform": Case(f'optax.selective_transform({INNER}, freeze_mask={{"w": True, "b": False}})'),
    "snapshot": Case(
        f'optax.chain(optax.snapshot("norm", lambda updates, *a, **k: optax.tree.norm(updates)), {INNER})'
    ),
    "stateless": Case("optax.stateless(lambda updates, params: jax.tree.map(lambda u: -0.05 * u, updates))"),
    "stateless_with_tree_map": Case("optax.stateless_with_tree_map(lambda u, p: -0.05 * u)"),
    "trace": Case("optax.chain(optax.trace(0.9), optax.scale(-0.05))"),
    "with_extra_args_support": Case(f"optax.with_extra_args_support({INNER})"),
    "contrib.differentially_private_aggregate": Case(
        f"optax.chain(optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0), {INNER})",
        note="with `Step.from_gradients`, whose function returns a gradient for each row",
    ),
    "contrib.dpsgd": Case(
        "optax.contrib.dpsgd(0.05, 1.0, 0.1, 0)",
        note="with `Step.from_gradients`, whose function returns a gradient for each row",
    ),
    "contrib.hutchinson_estimator_diag_hessian": Case(
        f"optax.chain(optax.contrib.hutchinson_estimator_diag_hessian(), {INNER})",
        "obj_fn=loss_fn",
        "its updates are those of the Hessian's diagonal, for rules such as Sophia's",
    ),
    "contrib.mechanize": Case("optax.contrib.mechanize(optax.sgd(0.05))"),
    "contrib.momo": Case("optax.contrib.momo()", "value=loss"),
    "contrib.momo_adam": Case("optax.contrib.momo_adam()", "value=loss"),
    "contrib.reduce_on_plateau": Case(f"optax.chain({INNER}, optax.contrib.reduce_on_plateau())", "value=loss"),
    "contrib.sam": Case(f"optax.contrib.sam({INNER}, optax.sgd(0.01))", note="each second step applies an update"),
    "contrib.sam, opaque": Case(
        f"optax.contrib.sam({INNER}, optax.sgd(0.01), opaque_mode=True)",
        "grad_fn=lambda params, _: jax.grad(loss_fn)(params)",
    ),
    "contrib.schedule_free": Case(
        f"optax.contrib.schedule_free({INNER}, 0.05)",
        note="validation, best weights and `result.model` have `schedule_free_eval_params`",
    ),
    "contrib.sophia": Case("optax.contrib.sophia(0.05)", "obj_fn=loss_fn"),
    "contrib.split_real_and_imaginary": Case(f"optax.contrib.split_real_and_imaginary({INNER})"),
}
WITHIN = {"contrib.scale_by_muon": "for matrices alone; tried within `contrib.muon`"}
PER_ROW = ("contrib.differentially_private_aggregate", "contrib.dpsgd")
MOVED = ("differentially_private_aggregate", "dpsgd")  # deprecated names of what is in contrib
_HELPERS = ("apply_updates", "init_empty_state")  # their annotations have the word


def transformations() -> dict[str, Callable[..., Any]]:
    """Returns the functions of `optax` and `optax.contrib` that make a transformation, by name.

    Some say it in their signature, others only in their source.
    """
    found = {}
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for name, function in sorted(vars(module).items()):
            if name.startswith("_") or name in _HELPERS or not inspect.isfunction(function):
                continue
            returns = inspect.signature(function).return_annotation
            told = inspect.getsource(function) if returns is inspect.Signature.empty else str(returns)
            if "GradientTransformation" in told:
                found[prefix + name] = function
    return {name: function for name, function in found.items() if name not in MOVED}


def _simple(path: str, function: Callable[..., Any]) -> Case | None:
    """A transformation that takes a learning rate and nothing else, or nothing; None for another."""
    parameters = inspect.signature(function).parameters.values()
    asked = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if asked == ["learning_rate"]:
        return Case(f"optax.{path}(0.05)")
    return Case(f"optax.{path}()") if not asked else None


def all_cases() -> dict[str, Case]:
    """Returns the name of each transformation, and how it is built; without those that need more than is known here."""
    found = {
        path: SPECIAL.get(path) or _simple(path, fn) for path, fn in transformations().items() if path not in WITHIN
    }
    found |= {path: SPECIAL[path] for path in ("MultiSteps", "contrib.sam, opaque")}
    known = {path: case for path, case in found.items() if case is not None}
    return dict(sorted(known.items(), key=lambda item: (item[0].startswith("contrib."), item[0])))


def build(case: Case) -> optax.GradientTransformation:
    """Builds it."""
    return eval(case.call, {"optax": optax, "jax": jax, "jnp": jnp})


def table() -> str:
    """Returns the table of the page."""
    rows = ["| transformation | tried as | in a loop by hand, `update(grads, state, params` |", "|---|---|---|"]
    for path, case in all_cases().items():
        by_hand = f"`, {case.extra})`" if case.extra else "`)`"
        note = f"; {case.note}" if case.note else ""
        rows.append(f"| `{path}` | `{case.call.replace('|', chr(92) + '|')}` | {by_hand}{note} |")
    rows += [f"| `{path}` | {why} | |" for path, why in WITHIN.items()]
    return "\n".join(rows)
