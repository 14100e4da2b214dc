"""The `teas` command. Exit codes: 0 done, 1 done but an expectation was not met, 2 bad input, 130 interrupted (continue with --resume)."""

from __future__ import annotations

import functools
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

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Time windows per layer for spiking neural networks.", pretty_exceptions_enable=False)
console = Console(stderr=True)  # standard output is for results

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, for machines.")]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder of the data sets, in torchvision's layout.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with bad input ending in one clear message, and an interruption in the way to go on."""

    @functools.wraps(command)
    def run_guarded(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except TeasError as error:
            console.print(f"[red]teas:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.print("teas: interrupted; the last finished epoch is kept, continue with --resume", highlight=False)
            raise typer.Exit(130) from None

    return run_guarded


def _hooks(tensorboard: Path | None = None) -> Any:
    from teas.study.experiment import Hooks, is_main_process

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
        console.print(f"  {arm} {epoch.stage} {epoch.number + 1:3d}  loss {epoch.loss:.4f}  train {epoch.accuracy:6.2f} %  windows {windows}", highlight=False)
        if writer:
            writer.add_scalar(f"{arm}/{epoch.stage}/loss", epoch.loss, count)
            writer.add_scalar(f"{arm}/{epoch.stage}/accuracy", epoch.accuracy, count)
            for layer, steps in epoch.windows.items():
                writer.add_scalar(f"{arm}/window/{layer}", steps, count)

    return Hooks(progress, on_epoch, lambda message: console.print(message, highlight=False))


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


@app.command()
@guarded
def demo(out: Annotated[Path, typer.Option("--out", help="Run folder; an earlier demo there is replaced.")] = Path("runs/demo"), as_json: JSON = False) -> None:
    """Train an IF network on handwritten digits, give every layer its own window, and write a report page (about two minutes)."""
    import torch

    from teas.study.config import parse
    from teas.study.experiment import read_marker, run
    from teas.study.report import write_report

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
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    windows: Annotated[str | None, typer.Option(help="A JSON file of windows, or one integer for all layers.")] = None,
    data: DataFolder = None,
    as_json: JSON = False,
) -> None:
    """Evaluate the adapted network of a run on its test data, at its own windows or at others."""
    from teas.spiking.time_windows import TimeWindows
    from teas.study import data as datasets
    from teas.study.experiment import EVALUATION_BATCH, load_run
    from teas.study.metrics import evaluate as measure

    network, split, experiment = load_run(folder, data)
    if windows and windows.lstrip("-").isdigit():
        network = network.with_windows(int(windows))
    elif windows:
        try:
            text = Path(windows).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise TeasError(f"--windows takes a JSON file or an integer; cannot read {windows!r}: {error}") from None
        network = network.with_windows(TimeWindows.from_json(text))
    found = measure(network, datasets.loader(split.test, EVALUATION_BATCH), experiment.seeds[0])
    if as_json:
        print(json.dumps(asdict(found)))
        return
    at = found.latency
    print(f"accuracy {found.accuracy:.2f} % on {found.samples} test images; spikes per image {found.spikes:.0f}")
    print(f"windows mean {at.mean:.2f}, op-weighted {at.weighted:.2f}, max {at.max}, sum {at.sum}: {found.windows}")
    print("energy nJ per image, without memory: " + ", ".join(f"{regime} {value:.1f}" for regime, value in found.energy.items()))


@app.command()
@guarded
def report(folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")], as_json: JSON = False) -> None:
    """Draw the pictures and the report page of a finished run again, and print its table."""
    from teas.study.experiment import read_metrics
    from teas.study.report import write_report

    page = write_report(folder)
    if as_json:
        print(json.dumps({"report": str(page)}))
    else:
        _show(read_metrics(folder), False, folder)


@app.command()
@guarded
def pack(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write: settings, windows, weights in 16 bits.")],
) -> None:
    """Keep a run's adapted network in a small folder that `teas evaluate` takes."""
    from teas.study import experiment as experiments

    print(experiments.pack(folder, out))


def main() -> None:
    """Run the command."""
    app()
