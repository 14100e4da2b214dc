"""The benchmark's results as lines of text and as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from teas.files import write_atomically
from teas.study import figures


def lines(results: dict[str, Any]) -> list[str]:
    """One line per contender, and one on the machine."""
    machine = results["machine"]
    found = [
        f"batch {results['batch']}, {results['threads']} threads, weights: {results['weights']}; this machine: "
        f"{machine['fp32_gmac_per_second']:.0f} GMAC/s in float32, reads {machine['read_gb_per_second']:.1f} GB/s",
        f"{'network':10s} {'T':>5s} {'contender':28s} {'images/s':>9s} {'(spread)':>17s} "
        f"{'x peer':>8s} {'time/ANN':>8s} {'% roof':>6s} {'peak MiB':>8s} {'added':>7s}",
    ]
    for row in results["rows"]:
        batch = results["batch"]
        spread = f"({batch / row['slowest']:.0f}-{batch / row['fastest']:.0f})"
        peer = f"{row['over_fastest_peer']:.1f}" if row["over_fastest_peer"] else ""
        ann = f"{row['time_over_ann']:.2f}" if row["time_over_ann"] else ""
        roof = f"{100 * row['of_roofline']:.1f}" if "of_roofline" in row else ""
        memory = f"  memory x{row['memory_over_peer']:.2f}" if "memory_over_peer" in row else ""
        found.append(
            f"{row['network']:10s} {row['window']:5d} {row['contender']:28s} {row['images_per_second']:9.1f} {spread:>17s} {peer:>8s} {ann:>8s} {roof:>6s} "
            f"{row['peak_mib']:8.0f} {row['added_mib']:7.0f}{memory}"
        )
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture, a PNG."""
    figure = figures.engine_speeds(results["rows"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
