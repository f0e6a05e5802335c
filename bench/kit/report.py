"""Results as a readable report: tables in Markdown, and a plot for each heat that has a rate.

This module knows result files. It may not know how they were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.kit.harness import format_goal, format_value

PLOT_INCHES = (8.0, 0.45)
PLOTTED_COLUMNS = ("records_per_s", "p50_us")


def write_report(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the report beside its plots, which are left out without matplotlib."""
    machine = results[0]["machine"]
    lines = [
        "# Benchmark report",
        "",
        "Figures of one machine at one time; compare the ratios, which were taken in one run.",
        "",
        *[f"- {name.replace('_', ' ')}: {value}" for name, value in machine.items()],
        "",
        "## Goals",
        "",
        *_goal_lines(results),
    ]
    for result in results:
        lines += ["", f"## {result['workload']}", ""]
        if result["toy"]:
            lines += ["Toy size: the figures mean nothing.", ""]
        for number, heat in enumerate(result["heats"]):
            lines += _heat_lines(heat)
            plot = path.with_name(f"{path.stem}-{result['workload']}-{number}.png")
            if _plot(heat, plot):
                lines += [f"![{heat['title']}]({plot.name})", ""]
    path.write_text("\n".join(lines) + "\n")


def _goal_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    goals = [(heat, goal) for result in results for heat in result["heats"] for goal in heat["goals"]]
    return [f"- {heat['title']}: {format_goal(goal)}" for heat, goal in goals] or ["None judged."]


def _heat_lines(heat: Mapping[str, Any]) -> list[str]:
    columns = list(heat["columns"])
    lines = [
        f"### {heat['title']}",
        "",
        f"| | {' | '.join(columns)} | {heat['compare']} / {heat['baseline']} | |",
        f"|---|{'---:|' * (len(columns) + 1)}---|",
    ]
    for row in heat["rows"]:
        cells = [format_value(row["median"].get(column)) for column in columns]
        ratio = row["ratio"]
        spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        remark = row["wrong"] or row["skipped"] or row["remark"]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {spread} | {remark.replace('|', '/')} |")
    return [*lines, ""]


def _plot(heat: Mapping[str, Any], path: Path) -> bool:
    """Bars of the first column worth a plot; whether one was made."""
    column = next((each for each in PLOTTED_COLUMNS if each in heat["columns"]), None)
    rows = [row for row in heat["rows"] if column in row["median"]]
    if len(rows) < 2:
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        figsize=(PLOT_INCHES[0], 1 + PLOT_INCHES[1] * len(rows)), layout="constrained"
    )
    names = [row["name"] for row in rows][::-1]
    values = [row["median"][column] for row in rows][::-1]
    colors = ["tab:orange" if name.startswith("shmlog") else "tab:blue" for name in names]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, labels=[format_value(value) for value in values], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.set_title(heat["title"])
    axes.set_xlabel(str(column))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True
