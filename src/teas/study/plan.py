"""What a run is going to do, in words, before it starts."""

from __future__ import annotations

from teas.adapt.schedule import Adjustment
from teas.adapt.training import Stage
from teas.study.ablation_arms import ARMS
from teas.study.config import Experiment


def describe_adjustment(plan: Adjustment) -> str:
    """A schedule in words."""
    score = {"activity": "activity", "activity_sensitivity": "activity x sensitivity"}[plan.score]
    power = "" if plan.exponent == 1 else f"^{plan.exponent:g}"
    when = "every epoch" if plan.every == 1 else f"every {plan.every} epochs"
    layers = "the layer" if plan.layers == 1 else f"each of the {plan.layers} layers"
    return (
        f"after {when} {layers} of least {score} above the goal gives up {100 * plan.fraction:g} % of its steps; "
        f"at the end all windows go to the goal, {score}{power} at a mean of {plan.mean:g}"
    )


def describe_stage(stage: Stage) -> str:
    """One stage in words."""
    parts = [f"{stage.name} {stage.epochs} epochs"]
    if stage.window:
        parts.append(f"at {stage.window} steps")
    parts.append(f"learning rate {stage.learning_rate:g}{' falling to 0' if stage.anneal else ''}")
    if stage.regulariser != "none":
        parts.append(f"regulariser {stage.regulariser} at {stage.strength:g}")
    if stage.loss != "rate":
        parts.append(f"loss {stage.loss}")
    parts += [f"in {stage.parts} parts"] if stage.parts > 1 else []
    parts += ["layers recomputed"] if stage.recompute else []
    parts += [f"synapses in {stage.precision}"] if stage.precision != "float32" else []
    return ", ".join(parts)


def describe(experiment: Experiment, stages: tuple[list[Stage], Stage, Stage], samples: int) -> list[str]:
    """The whole run in words, a line an arm."""
    pretraining, retraining, finetuning = stages
    if experiment.ablation:
        others, trained = "", sum(ARMS[arm].trained for arm in experiment.ablation.arms)
        first = f"every arm ({'; '.join(ARMS[arm].title for arm in experiment.ablation.arms)}), but for what its name says"
    else:
        others, trained = ", ".join(experiment.controls), 1 + len(experiment.controls)
        first = "adaptive"
    per_seed = sum(stage.epochs for stage in pretraining) + trained * (retraining.epochs + finetuning.epochs)
    lines = [
        f"plan: {len(experiment.seeds)} seed(s), {per_seed} epochs of {samples} samples each, batches of {experiment.data.batch}",
        f"  full: {'; '.join(describe_stage(stage) for stage in pretraining) or f'trained before, {experiment.network.weights}'}",
        f"  {first}: windows start at activity^{experiment.windows.exponent:g}, the largest {experiment.training.window}; {describe_stage(retraining)}",
    ]
    if retraining.adjustment:
        lines.append(f"    {describe_adjustment(retraining.adjustment)}")
    if finetuning.epochs:
        lines.append(f"    {describe_stage(finetuning)}")
    if others:
        lines.append(f"  {others}: the same epochs at windows of the same mean from the start")
    return lines
