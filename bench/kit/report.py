"""Results as tables in Markdown, which a terminal shows as well.

This module knows result files. It may not know how they were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.kit.machine import LOAD_BEFORE, OTHERS_PERCENT


def write_report(result: Mapping[str, Any], path: Path) -> None:
    """Write everything that was measured."""
    parts = [
        "# Benchmark report",
        "Figures of one machine at one time; compare the ratios, which were taken in one run. Behind a\n"
        "median stand the least and the greatest of the repetitions. *load* is the load average before a\n"
        "run and the share of the machine that others took during it, the greatest of the repetitions.",
        "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in result["machine"].items()),
        "## Figures to hold",
        format_figures(result["figures"]),
    ]
    if result["toy"]:
        parts.insert(1, "Toy size: the figures mean nothing.")
    workload = ""
    for heat in result["heats"]:
        if heat["workload"] != workload:
            parts.append(f"## {(workload := heat['workload'])}")
        parts.append(format_heat(heat))
    path.write_text("\n\n".join(parts) + "\n")


def format_figures(figures: Sequence[Mapping[str, Any]]) -> str:
    """The table of what is held; a plain note if nothing was judged."""
    rows = []
    for each in figures:
        value = f"{format_value(each['value']['median'])} {each['of']}" if each["value"] else ""
        of = f" of {each['strongest']}" if each["strongest"] else ""
        measured = format_spread(each["figure"])
        floor = f"{each['floor_varies']:.2f}x"
        rows.append(
            [each["what"], each["goal"], measured + of, value, str(each["runs"]), floor, each["verdict"]]
        )
    heading = ["what", "goal", "measured", "median", "runs", "floor varied", "verdict"]
    return _table(heading, rows, left=(0, 1, 2, 6)) if rows else "None measured."


def format_heat(heat: Mapping[str, Any]) -> str:
    """One heat as a table."""
    columns = heat["columns"]
    heading = ["", *columns, f"{heat['compare']} / {heat['baseline']}", "runs", "load", ""]
    rows = [_row(row, columns) for row in heat["rows"]]
    return f"### {heat['title']}\n\n" + _table(heading, rows, left=(0, len(heading) - 1))


def _row(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    runs = row["repetitions"]
    remark = row["skipped"] or row["remark"]
    if row["wrong"] or not runs:
        said = "WRONG" if row["wrong"] else "skipped"
        return [row["name"], *[""] * len(columns), said, "", "", row["wrong"] or remark]
    cells = [format_value(row["median"].get(column)) for column in columns]
    load = max(each[LOAD_BEFORE] for each in runs)
    others = max(each[OTHERS_PERCENT] for each in runs)
    return [
        row["name"],
        *cells,
        format_spread(row["ratio"]),
        str(len(runs)),
        f"{load:.1f}, {others:.0f} %",
        remark,
    ]


def format_spread(spread: Mapping[str, float] | None) -> str:
    """A median with the least and the greatest."""
    if spread is None:
        return "-"
    median, least, most = (_short(spread[name]) for name in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def _short(value: float) -> str:
    return format_value(value) if value >= 100 else f"{value:.2f}"


def format_value(value: float | None) -> str:
    """A figure with three significant digits, and thousands separated."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    lines = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in (heading, *rows)]
    widths = [max(3, *(len(line[number]) for line in lines)) for number in range(len(heading))]
    widths[-1] = 3  # a remark may be long
    rule = ["-" * width if number in left else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
