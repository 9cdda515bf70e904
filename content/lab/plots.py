"""One style for all plots, and a description of each for those who cannot see it."""

import matplotlib.pyplot as plt
from IPython import get_ipython
from matplotlib.figure import Figure

GREY, BLACK, BLUE, ORANGE = "0.55", "black", "tab:blue", "tab:orange"  # past, truth, ours, cold
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})


def describe(figure: Figure) -> str:
    """Return what a figure says in words: its titles, axes and legends."""
    parts = [figure.get_suptitle()]
    for panel in figure.axes:
        parts.append(panel.get_title())
        for axis, label in (("x", panel.get_xlabel()), ("y", panel.get_ylabel())):
            parts.append(label and f"{axis}: {label}")
        parts += panel.get_legend_handles_labels()[1]
    return "Plot. " + "; ".join(dict.fromkeys(part for part in parts if part))


if shell := get_ipython():  # in place of `<Figure size 900x405 with 6 Axes>`
    plt.switch_backend(plt.get_backend())  # at its start it forgets how figures are shown
    text_formatter = shell.display_formatter.formatters["text/plain"]
    text_formatter.for_type(Figure, lambda figure, printer, cycle: printer.text(describe(figure)))
