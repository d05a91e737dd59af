"""Which teacher channels guide which student channels, and what every pair would cost, as pictures."""

import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from mgd_ssl.errors import UserError
from mgd_ssl.report.figures import Picture, drawn, picture
from mgd_ssl.run.checkpoint import Checkpoints, read_checkpoint
from mgd_ssl.run.read import Run

MAX_CELLS = (256, 512)  # rows and columns of a cost matrix as drawn; larger ones are averaged
TABLE_ROWS = 8  # student channels named in a stage's table

Costs = NDArray[np.float32]
Assignment = NDArray[np.int64]


@dataclass(frozen=True)
class StageReport:
    """A stage's pictures, and `(student channel, teacher channels, mean cost)` of some of its channels."""

    stage: int
    pictures: list[Picture]
    table: list[tuple[str, str, str]]
    table_caption: str


def stage_reports(run: Run, notes: list[str]) -> list[StageReport]:
    """Every stage of a guided run; what is missing is told in `notes`."""
    if run.teacher is None:
        return []
    assignments, costs = read_assignments(run, notes), read_costs(run, notes)
    return [
        stage_report(stage, assignments.get(stage), costs.get(stage))
        for stage in sorted(assignments.keys() | costs.keys())
    ]


def read_assignments(run: Run, notes: list[str]) -> dict[int, Assignment]:
    """Assignment [C_s, G] of every stage, from the newest whole checkpoint."""
    try:
        path = Checkpoints(run.folder / "checkpoints").newest_whole(notes.append)
        if path is None:
            notes.append("No checkpoint is left, so its assignments cannot be shown.")
            return {}
        last_parts = {name.rpartition(".")[2]: value for name, value in read_checkpoint(path)["guide"].items()}
        found = {
            int(name.removeprefix("assignment")): value.numpy()
            for name, value in last_parts.items()
            if name.startswith("assignment")
        }
    except (UserError, KeyError, ValueError, AttributeError) as error:
        notes.append(f"The assignments cannot be shown: {error}.")
        return {}
    notes.append(f"Assignments as of {path.name}.")
    return {stage: value for stage, value in found.items() if (value >= 0).all()}


def read_costs(run: Run, notes: list[str]) -> dict[int, Costs]:
    """Mean costs [C_s, C_t] of every stage at the newest matching update."""
    path = run.folder / "matching_costs.npz"
    if not path.is_file():
        notes.append(
            "The run kept no matching costs (matching_costs.npz, which a run now writes at every matching update), so "
            "cost matrices cannot be shown."
        )
        return {}
    try:
        with np.load(path) as file:
            epoch = int(file["epoch"])
            found = {
                int(name.removeprefix("stage")): file[name].astype(np.float32)
                for name in file.files
                if name.startswith("stage")
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        notes.append(f"{path.name} is damaged, so cost matrices cannot be shown.")
        return {}
    notes.append(f"Costs as of the update {f'after epoch {epoch}' if epoch else 'before training'}.")
    return found


def stage_report(stage: int, assignment: Assignment | None, costs: Costs | None) -> StageReport:
    """Pictures and table of a stage of which at least one is known."""
    rows = row_order(assignment, costs)
    pictures = []
    if costs is not None:
        pictures.append(cost_picture(stage, costs, rows, column_order(assignment, costs, rows)))
    if assignment is not None:
        pictures.append(assignment_picture(stage, assignment, costs, rows))
    return StageReport(stage, pictures, *feeding_table(assignment, costs))


def row_order(assignment: Assignment | None, costs: Costs | None) -> NDArray[np.intp]:
    """Student channels so that those with similar costs are neighbours; as numbered where costs are unknown."""
    if costs is None:
        assert assignment is not None
        return np.arange(len(assignment))
    if len(costs) < 3:
        return np.arange(len(costs))
    return leaves_list(linkage(costs, "ward"))


def column_order(assignment: Assignment | None, costs: Costs, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Teacher channels in the order of the student channels they feed, those that feed none last."""
    if assignment is None:
        place = np.argsort(rows)  # where a student channel stands
        return np.argsort(place[costs.argmin(axis=0)], kind="stable")
    matched = assignment[rows].ravel()
    return np.concatenate([matched, np.setdiff1d(np.arange(costs.shape[1]), matched)])


def binned(matrix: Costs) -> Costs:
    """Means over blocks, so that at most `MAX_CELLS` are left."""
    for axis, most in enumerate(MAX_CELLS):
        if matrix.shape[axis] > most:
            edges = np.linspace(0, matrix.shape[axis], most, endpoint=False).astype(int)
            counts = np.diff([*edges, matrix.shape[axis]])
            sums = np.add.reduceat(matrix, edges, axis=axis)
            matrix = sums / np.expand_dims(counts, 1 - axis)
    return matrix


def cost_picture(stage: int, costs: Costs, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Picture:
    """The cost matrix, rows and columns ordered."""
    ordered = binned(costs[np.ix_(rows, columns)])
    low, high = np.percentile(ordered, [0.5, 99.5])
    with drawn() as figure:
        axes = figure.subplots()
        extent = (0, costs.shape[1], costs.shape[0], 0)
        image = axes.imshow(ordered, aspect="auto", extent=extent, vmin=low, vmax=high, interpolation="nearest")
        axes.grid(False)
        figure.colorbar(image, label="mean cost of the pair (0 to 4)")
        axes.set(xlabel="teacher channels, ordered", ylabel="student channels, ordered", title=f"Stage {stage}: costs")
        note = "" if ordered.shape == costs.shape else f", averaged to {ordered.shape[0]} × {ordered.shape[1]} cells"
        return picture(
            figure,
            f"Cost matrix of stage {stage}, student channels by teacher channels",
            f"{costs.shape[0]} × {costs.shape[1]} pairs{note}; student channels of similar cost side by side, teacher "
            "channels in the order of those they feed: the matched pairs lie on the diagonal",
            pixels=True,
        )


def assignment_picture(stage: int, assignment: Assignment, costs: Costs | None, rows: NDArray[np.intp]) -> Picture:
    """Every matched pair as a point; teacher channels as numbered."""
    ordered = assignment[rows]  # [C_s, G]
    y = np.repeat(np.arange(len(ordered)), ordered.shape[1]) + 0.5
    with drawn() as figure:
        axes = figure.subplots()
        colours = {"color": "#0072B2"} if costs is None else {"c": np.take_along_axis(costs[rows], ordered, 1).ravel()}
        points = axes.scatter(ordered.ravel() + 0.5, y, s=max(1.5, 900 / ordered.size), **colours)
        if costs is not None:
            figure.colorbar(points, label="mean cost of the pair (0 to 4)")
        width = int(assignment.max()) + 1 if costs is None else costs.shape[1]
        axes.set(xlim=(0, width), ylim=(len(ordered), 0), title=f"Stage {stage}: assignment")
        order = ", as numbered" if costs is None else "s, in the order of the costs"
        axes.set(xlabel="teacher channel, as numbered", ylabel=f"student channel{order}")
        return picture(
            figure,
            f"Assignment of stage {stage}: a point where a teacher channel feeds a student channel",
            f"{ordered.size} teacher channels feed {len(ordered)} student channels, {ordered.shape[1]} each",
            pixels=True,
        )


def feeding_table(assignment: Assignment | None, costs: Costs | None) -> tuple[list[tuple[str, str, str]], str]:
    """Some student channels with the teacher channels that feed them; those that match best where it is known."""
    if assignment is None:
        return [], ""
    chosen = np.arange(len(assignment))
    pair_costs = None
    if costs is not None:
        pair_costs = np.take_along_axis(costs, assignment, 1).mean(axis=1)
        chosen = np.argsort(pair_costs, kind="stable")
    chosen = chosen[:TABLE_ROWS]
    table = [
        (
            str(student),
            ", ".join(map(str, sorted(assignment[student].tolist()))),
            "" if pair_costs is None else f"{pair_costs[student]:.3f}",
        )
        for student in chosen.tolist()
    ]
    which = "the first" if pair_costs is None else "those with the least cost"
    return table, f"{len(table)} of {len(assignment)} student channels, {which}"
