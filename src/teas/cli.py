"""The `teas` command. Exit codes: 0 done, 1 done but an expectation was not met, 2 bad input, 130 interrupted (continue with --resume)."""

from __future__ import annotations

import functools
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from teas.errors import TeasError
from teas.interruptions import interruptions_reach_us

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Time windows per layer for spiking neural networks.", pretty_exceptions_enable=False)
console = Console(stderr=True)  # standard output is for results

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, for machines.")]
Subject = Annotated[Path, typer.Argument(metavar="RUN_DIR|TOML", help="Folder of a finished run, or the experiment of a conversion.")]
Windows = Annotated[str | None, typer.Option(help="A JSON file of windows, or one integer for all layers.")]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder of the data sets, in torchvision's layout.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with bad input ending in one clear message, and an interruption in the way to go on where there is one."""
    way_on = "; the last finished epoch is kept, continue with --resume" if "resume" in inspect.signature(command).parameters else ""

    @functools.wraps(command)
    def run_guarded(*arguments: Any, **options: Any) -> None:
        try:
            with interruptions_reach_us():
                command(*arguments, **options)
        except TeasError as error:
            console.print(f"[red]teas:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.print(f"teas: interrupted{way_on}", highlight=False)
            raise typer.Exit(130) from None

    return run_guarded


def _hooks(tensorboard: Path | None = None) -> Any:
    from teas.study.experiment import is_main_process
    from teas.study.hooks import Hooks

    if not is_main_process():
        return Hooks()
    writer = None
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise TeasError("--tensorboard needs the tensorboard package: pip install tensorboard") from None
        writer = SummaryWriter(str(tensorboard))
    count = 0

    def progress(batches: Iterable[Any], title: str) -> Iterable[Any]:
        return track(batches, title, console=console, transient=True) if console.is_terminal else batches

    def on_epoch(arm: str, epoch: Any) -> None:
        nonlocal count
        count += 1
        windows = " ".join(str(steps) for steps in epoch.windows.values())
        held_out = "" if epoch.validation is None else f"  held out {epoch.validation:6.2f} %"
        cost = f"{epoch.samples_per_second:.0f} images/s  {epoch.memory:.0f} MiB"
        text = f"  {arm} {epoch.stage} {epoch.number + 1:3d}  loss {epoch.loss:.4f}  train {epoch.accuracy:6.2f} %{held_out}  windows {windows}  {cost}"
        console.print(text, highlight=False, soft_wrap=True)
        if writer:
            writer.add_scalar(f"{arm}/{epoch.stage}/loss", epoch.loss, count)
            writer.add_scalar(f"{arm}/{epoch.stage}/accuracy", epoch.accuracy, count)
            for layer, steps in epoch.windows.items():
                writer.add_scalar(f"{arm}/window/{layer}", steps, count)

    return Hooks(progress, on_epoch, lambda message: console.print(message, highlight=False, soft_wrap=True))


def _show(metrics: dict[str, Any], as_json: bool, folder: Path) -> None:
    from teas.study.report import findings, header, note, table_rows

    if as_json:
        print(json.dumps(metrics))
        return
    out = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(*header(metrics), title=metrics["name"], title_justify="left")
    for row in table_rows(metrics):
        table.add_row(*row, style="bold" if row[0] in ("adaptive", "damage") else None)
    out.print(table)
    for line in [*findings(metrics), note(metrics)]:
        out.print(line, highlight=False)
    out.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _show_found(found: dict[str, Any], as_json: bool, table: tuple[list[str], list[list[str]]], lines: Iterable[str], files: Iterable[Path]) -> None:
    """A table of results with its findings and files, or one JSON object."""
    if as_json:
        print(json.dumps(found))
        return
    out = Console(width=None if sys.stdout.isatty() else 240)
    shown = Table(*table[0])
    for row in table[1]:
        shown.add_row(*row)
    out.print(shown)
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)
    for file in files:
        out.print(f"Written: {file}", highlight=False, soft_wrap=True)


@app.command()
@guarded
def demo(out: Annotated[Path, typer.Option("--out", help="Run folder; an earlier demo there is replaced.")] = Path("runs/demo"), as_json: JSON = False) -> None:
    """Train an IF network on handwritten digits, give every layer its own window, and write a report page (about two minutes)."""
    import torch

    from teas.study.config import parse
    from teas.study.experiment import run
    from teas.study.report import write_report
    from teas.study.run_folder import read_marker

    torch.set_num_threads(1)  # a network this small is faster on one, and the figures then do not depend on the number of cores
    experiment = parse(resources.files("teas.study").joinpath("demo.toml").read_text(), "the demo")
    marker = read_marker(out)
    if marker and marker["experiment"].get("name") == experiment.name:
        shutil.rmtree(out)
    metrics = run(experiment, out, hooks=_hooks())
    write_report(out)
    _show(metrics, as_json, out)


@app.command()
@guarded
def run(
    experiment: Annotated[Path, typer.Argument(help="Experiment, a TOML file.")],
    data: DataFolder = None,
    download: Annotated[bool, typer.Option(help="Fetch the data set into the data folder with torchvision.")] = False,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key, e.g. --set training.window=8; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [default: runs/NAME].")] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Log epochs for TensorBoard into the run folder.")] = False,
    as_json: JSON = False,
) -> None:
    """Run an experiment: train, adapt the windows, fine-tune, run the controls, and write metrics and a report."""
    from teas.study import config
    from teas.study import experiment as experiments
    from teas.study.report import write_report

    page = config.read(experiment, tuple(change or ()))
    folder = out or Path("runs") / page.name
    hooks = _hooks(folder.with_name(folder.name + "-tensorboard") if tensorboard else None)
    metrics = experiments.run(page, folder, data_folder=data, download=download, resume=resume, hooks=hooks)
    if not experiments.is_main_process():
        return
    write_report(folder)
    _show(metrics, as_json, folder)
    if not metrics["expectation_met"]:
        console.print(f"[bold]The expectation of {experiment} was not met.[/bold]")
        raise typer.Exit(1)


@app.command()
@guarded
def evaluate(
    folder: Subject,
    windows: Windows = None,
    radix: Annotated[bool, typer.Option("--radix", help="Counts in binary digits: as few steps as say its levels, or --windows of these.")] = False,
    data: DataFolder = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="On the images held out of the training set instead of the test images.")] = False,
    as_json: JSON = False,
) -> None:
    """Evaluate the network of a run, or a converted one, on its test data, at its own windows or at others."""
    from teas.spiking.radix import to_radix
    from teas.study import data as datasets
    from teas.study.experiment import EVALUATION_BATCH
    from teas.study.metrics import evaluate as measure
    from teas.study.subject import open_subject

    subject = open_subject(folder, data)
    network, images = subject.make(subject.windows(None if radix else windows)), subject.data.validation if held_out else subject.data.test
    network = to_radix(network, subject.windows(windows) if windows else None) if radix else network
    found = measure(network, datasets.loader(images, EVALUATION_BATCH), subject.experiment.seeds[0])
    if as_json:
        print(json.dumps(asdict(found)))
        return
    at = found.latency
    print(f"accuracy {found.accuracy:.2f} % on {found.samples} {'held-out' if held_out else 'test'} images; spikes per image {found.spikes:.0f}")
    print(f"windows mean {at.mean:.2f}, op-weighted {at.weighted:.2f}, max {at.max}, sum {at.sum}: {found.windows}")
    print("energy nJ per image, without memory: " + ", ".join(f"{regime} {value:.1f}" for regime, value in found.energy.items()))


@app.command()
@guarded
def report(folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")], as_json: JSON = False) -> None:
    """Draw the pictures and the report page of a finished run again, and print its table."""
    from teas.study.report import write_report
    from teas.study.run_folder import read_metrics

    page = write_report(folder)
    if as_json:
        print(json.dumps({"report": str(page)}))
    else:
        _show(read_metrics(folder), False, folder)


@app.command()
@guarded
def profile(
    path: Subject,
    data: DataFolder = None,
    windows: Windows = None,
    noise: Annotated[
        list[str] | None, typer.Option(help="Disturbance KIND or KIND=u: flip, delete, jitter, potential; may be repeated [flip=0.1 and delete=0.1].")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many test images.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="How many draws of the noise.")] = 5,
    shorten: Annotated[int, typer.Option(min=1, help="Steps of the one layer that is shortened.")] = 4,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for results [default: the run folder].")] = None,
    as_json: JSON = False,
) -> None:
    """Measure every layer's activity and vulnerability, and whether they go together; an interrupted profile continues."""
    from teas.study import profile as profiles

    found, folder = profiles.run(
        path, data, windows, noise or ["flip=0.1", "delete=0.1"], images=images, seeds=range(seeds), shorten=shorten, out=out, hooks=_hooks()
    )
    _show_found(found, as_json, profiles.table(found), profiles.findings(found), profiles.pictures(found, folder))


@app.command()
@guarded
def explore(
    path: Subject,
    data: DataFolder = None,
    max_loss: Annotated[float | None, typer.Option(help="Take the cheapest windows that lose at most this many points of accuracy [0.1].")] = None,
    budget: Annotated[str | None, typer.Option(help="Take the most accurate windows within a budget, e.g. sum=120, mean=8, INT8=900.")] = None,
    cost: Annotated[str, typer.Option(help="What to trade accuracy against: mean, weighted, max, sum, energy, or a regime.")] = "sum",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for results [default: the run folder].")] = None,
    as_json: JSON = False,
) -> None:
    """Trade accuracy against time and energy: many windows for one set of weights, their Pareto front, and the point to run at."""
    from teas.errors import check_choice
    from teas.study import explore as explorer

    check_choice("--cost", cost, explorer.COSTS)
    limit = explorer.parse_budget(budget) if budget else None
    loss = 0.1 if max_loss is None and limit is None else max_loss
    options = {"allocators": explorer.ALLOCATORS, "means": explorer.MEANS, "cost": cost, "max_loss": loss, "budget": limit}
    found, folder = explorer.run(path, data, out=out, hooks=_hooks(), **options)
    _show_found(found, as_json, explorer.table(found), explorer.findings(found), [folder / name for name in ("windows.json", "tradeoff.png")])


@app.command()
@guarded
def adapt(
    path: Subject,
    data: DataFolder = None,
    max_loss: Annotated[float, typer.Option(help="Points of accuracy that may be lost.")] = 0.1,
    minimise: Annotated[str, typer.Option(help="What is to be least: sum, mean or energy; also weighted, max, or a regime.")] = "sum",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the network [default: the run folder's name and -adapted].")] = None,
    as_json: JSON = False,
) -> None:
    """Find the cheapest windows that keep the accuracy, retrained where the TOML says so, and write the network to a folder for `teas evaluate`."""
    from teas.study import adapting, explore

    found, folder = adapting.run(path, data, max_loss=max_loss, minimise=minimise, out=out, hooks=_hooks())
    _show_found(found, as_json, explore.table(found), explore.findings(found), [folder / name for name in adapting.FILES])


@app.command()
@guarded
def cascade(
    path: Subject,
    data: DataFolder = None,
    mean: Annotated[list[float] | None, typer.Option(help="Mean window of a stage, rising; may be repeated [default: 8 and 45].")] = None,
    risk: Annotated[float, typer.Option(help="Extra errors against the last stage that may be made, in points.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Probability with which the risk holds, over the draw of the calibration images.")] = 0.95,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for results [default: the run folder].")] = None,
    as_json: JSON = False,
) -> None:
    """Decide image by image how many steps to spend, at a stated risk, and measure it beside its controls."""
    from teas.study import cascade as cascades

    found, folder = cascades.run(path, data, means=mean or [8, 45], risk=risk, confidence=confidence, out=out, hooks=_hooks())
    _show_found(found, as_json, cascades.table(found), cascades.findings(found), [folder / "cascade.json"])


@app.command()
@guarded
def reproduce(
    what: Annotated[str, typer.Argument(help="fig3, fig5, fig6, fig7, fig8a, fig8b, table2 or table3.")],
    data: DataFolder = None,
    train: Annotated[bool, typer.Option("--train", help="Also run what trains and is not finished yet: hours without a GPU.")] = False,
    experiments: Annotated[Path, typer.Option(help="Folder of the experiments.")] = Path("experiments"),
    runs: Annotated[Path, typer.Option(help="Folder of finished runs.")] = Path("runs"),
    out: Annotated[Path, typer.Option("--out", help="Folder for results and what they are cached in.")] = Path("runs/reproduce"),
    as_json: JSON = False,
) -> None:
    """Make a figure or table of the paper again: ours beside the paper's, and what was not run and why."""
    from teas.study import reproduce as reproduction

    place = reproduction.Place(data, experiments, runs, experiments.parent / "zoo", out, train, _hooks())
    found = reproduction.reproduce(what, place)
    _show_found(asdict(found), as_json, (found.header, found.rows), [found.title, *found.notes], map(Path, found.pictures))


@app.command()
@guarded
def pack(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write: settings, windows, weights.")],
    bits: Annotated[int, typer.Option(help="16, or 8: one byte a weight and a step per output channel; see what it costs with teas evaluate.")] = 16,
    data: DataFolder = None,
) -> None:
    """Keep a run's adapted network in a small folder that `teas evaluate` takes."""
    from teas.study import run_folder

    print(run_folder.pack(folder, out, bits, data))


@app.command()
@guarded
def engines(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")], data: DataFolder = None, as_json: JSON = False
) -> None:
    """Which engines can execute a run's adapted network, in the order that `auto` tries them, and why the others can't."""
    from teas.study.bench import engines_table
    from teas.study.run_folder import load_run

    found = engines_table(load_run(folder, data)[0].eval())
    if as_json:
        print(json.dumps(dict(found)))
        return
    for name, reasons in found:
        print(f"{name:16s} {'; '.join(reasons) or 'can run it'}")


@app.command()
@guarded
def bench(
    network: Annotated[list[str] | None, typer.Option(help="mlp, resnet20 or vgg16; may be repeated [default: all].")] = None,
    window: Annotated[list[int] | None, typer.Option(help="Steps of every layer; may be repeated [default: 4 8 16 45 64 256].")] = None,
    contender: Annotated[list[str] | None, typer.Option(help="Whom to time; may be repeated [default: all].")] = None,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 32,
    threads: Annotated[int, typer.Option(help="Threads of every contender.")] = 2,
    seconds: Annotated[float, typer.Option(help="Time to spend on each, at least three rounds.")] = 5.0,
    weights: Annotated[Path | None, typer.Option(help="Weights of the ResNet-20; random without.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw images a second against the window into this PNG.")] = None,
    as_json: JSON = False,
) -> None:
    """Time our engines beside other libraries and the ANN, after checking that all of them compute the same."""
    from teas.study import bench as benchmark
    from teas.study.bench_contender import CONTENDERS
    from teas.study.bench_networks import NETWORKS
    from teas.study.bench_report import draw, lines

    names = contender or [name for name in CONTENDERS if not name.startswith("reference")]
    shared = {"batch": batch, "threads": threads, "seconds": seconds, "weights": str(weights) if weights else None}
    todo = benchmark.tasks(network or list(NETWORKS), window or [4, 8, 16, 45, 64, 256], names, **shared)
    results = benchmark.run(todo, lambda message: console.print(message, highlight=False))
    results["rows"] = benchmark.with_ratios(results)
    if picture:
        draw(results, picture)
    if as_json:
        print(json.dumps(results))
    else:
        print("\n".join(lines(results)))


def main() -> None:
    """Run the command."""
    app()
