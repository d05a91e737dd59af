"""The README's picture: the demo's students with and without a teacher, three seeds, as docs/demo.md has them.

python -m benchmarks.students
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
ROW = re.compile(r"^\| (\S+) \| ([\w +]+?) \| (\d+) \| ([\d.]+) ± ([\d.]+) \|", re.M)
WITH, WITHOUT, TEACHER = "#1b6ca8", "#c8ccd2", "#444444"


def measured(page: str) -> dict[tuple[str, str, int], tuple[float, float]]:
    """(network, method, epochs) -> k-NN top-1 and its standard deviation, of the rows with three seeds."""
    return {(row[1], row[2], int(row[3])): (float(row[4]), float(row[5])) for row in ROW.finditer(page)}


def draw(path: Path) -> None:
    """Bars of two lengths of training, and a line for the teacher."""
    values = measured((DOCS / "demo.md").read_text())
    figure, axes = plt.subplots(figsize=(7, 2.5), dpi=110)
    ticks = []
    for place, (label, method, epochs, colour) in enumerate(
        [
            ("untrained", "random", 0, WITHOUT),
            ("5 epochs alone", "MoCo v2", 5, WITHOUT),
            ("5 epochs with a teacher", "MoCo v2 + MGD", 5, WITH),
            ("20 epochs alone", "MoCo v2", 20, WITHOUT),
            ("20 epochs with a teacher", "MoCo v2 + MGD", 20, WITH),
        ]
    ):
        top1, deviation = values["thin_resnet10", method, epochs]
        axes.barh(-place, top1, color=colour, xerr=deviation, error_kw={"ecolor": TEACHER, "elinewidth": 1})
        axes.text(top1 - 3 - deviation, -place, f"{top1:.1f}", va="center", ha="right", fontsize=9,
                  color="white" if colour == WITH else "black")  # fmt: skip
        ticks.append(label)
    teacher = values["thin_resnet14", "MoCo v2", 40][0]
    axes.axvline(teacher, color=TEACHER, linestyle="--", linewidth=1)
    axes.text(teacher - 0.7, 0, f"teacher {teacher:.1f} ", va="center", ha="right", fontsize=9, color=TEACHER)
    axes.set_yticks([-place for place in range(len(ticks))], ticks, fontsize=9)
    axes.set(xlim=(0, 100), xlabel="k-NN top-1 of the small network on 16 procedural textures (%), three seeds")
    axes.xaxis.label.set_fontsize(9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(DOCS / "students.png")
