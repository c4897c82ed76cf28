"""Rate against flows and against rules, as SVG."""

import os

import matplotlib

matplotlib.use("svg")
# The same rows give the same file.
matplotlib.rcParams.update({"svg.hashsalt": "flowgate", "font.size": 9})
from matplotlib import pyplot


def curves(rows, key):
    """Points by the name of their curve: everything but `key` that tells rows apart."""
    result = {}
    for row in rows:
        parts = [row["system"], row["case"]]
        if key != "rules" and row["rules"]:
            parts.append(f"{row['rules']:,} rules")
        if key != "flows":
            parts.append(f"{row['flows']:,} flows")
        result.setdefault(" ".join(parts), []).append((row[key], row["mpps"]))
    return {name: sorted(points) for name, points in result.items()}


def chart(rows, key, path):
    names = curves(rows, key)
    if not any(len(points) > 1 for points in names.values()):
        return
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, points in names.items():
        dashed = "--" if name.startswith("testpmd") else "-"
        axes.plot(*zip(*points), dashed, marker="o", markersize=3, linewidth=1.2, label=name)
    axes.set(xscale="log", xlabel=key, ylabel="Mpps, one worker")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def draw(rows, folder):
    os.makedirs(folder, exist_ok=True)
    chart(rows, "flows", os.path.join(folder, "rate-by-flows.svg"))
    chart([row for row in rows if row["rules"]], "rules", os.path.join(folder, "rate-by-rules.svg"))
