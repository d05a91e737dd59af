"""The model card: what a network is, what was measured and how, and whose weights taught it."""

from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from mgd_ssl.export.config import ExportConfig
from mgd_ssl.export.student import Student
from mgd_ssl.printable import printable
from mgd_ssl.run.result import Evaluation
from mgd_ssl.setting_keys import flattened

TEMPLATE = Path(__file__).with_name("card.md")


class Row(NamedTuple):
    """An accuracy in percent, and all that it depends on."""

    what: str
    top1: str
    top5: str
    protocol: str


def model_card(student: Student, config: ExportConfig) -> str:
    """README.md of a repository."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    name = config.push or config.out.name
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        student=student,
        config=config,
        title=cell(name.rpartition("/")[2]),
        name=cell(name),
        place=cell(f"hf-hub:{name}" if config.push else f"local-dir:{name}"),
        kind="AutoModelForImageClassification" if student.classes else "AutoModel",
        method=method(student),
        mean=list(student.normalisation.mean),
        deviation=list(student.normalisation.std),
        rows=measured(student),
        recipe=recipe(student),
        commit=student.origin.get("environment", {}).get("git"),
    )


def method(student: Student) -> str:
    """How it was trained, in words."""
    guided = (
        ", guided by a teacher through [Matching Guided Distillation](https://arxiv.org/abs/2008.09958)"
        if student.teacher
        else ""
    )
    if not student.origin:
        return "from a file of weights"
    supervised = student.origin.get("task") == "classification"
    return ("supervised on labelled images" if supervised else "self-supervised by MoCo v2") + guided


def measured(student: Student) -> list[Row]:
    """The accuracies of its run and of its evaluations."""
    rows = []
    if validation := student.result.get("validation"):
        told = "top-1 and top-5 after the last epoch, centre crops of data.val"
        rows.append(Row("validation", f"{validation['top1']:.2f}", f"{validation['top5']:.2f}", told))
    if knn := student.result.get("knn"):
        settings = student.origin["config"]["knn"]
        told = (
            f"k-NN k={settings['k']} T={settings['temperature']}, {student.origin['config']['data']['image_size']} px"
        )
        for whose, prefix in (("k-NN", ""), ("k-NN of the teacher", "teacher_"), ("k-NN, untrained", "random_")):
            if f"{prefix}top1" in knn:
                rows.append(Row(whose, f"{knn[f'{prefix}top1']:.2f}", f"{knn[f'{prefix}top5']:.2f}", told))
    for each in student.evaluations:
        rows.append(Row(each.kind, shown(each, "top1"), shown(each, "top5"), cell(each.protocol)))
    return rows


def shown(evaluation: Evaluation, metric: str) -> str:
    """Mean, and the deviation over seeds."""
    if metric not in evaluation.values:
        return ""
    deviation = evaluation.deviation(metric)
    return f"{evaluation.mean(metric):.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def recipe(student: Student) -> list[tuple[str, Any]]:
    """The settings of its run that say what was learnt, without folders of this machine."""
    of_teacher = ("mgd.", "kd.") if student.teacher else ()
    kept = ("student", "seed", "data.", "moco.", "optim.", "runtime.precision", *of_teacher)
    left_out = ("data.train", "data.val", "data.workers", "data.backend", "data.max_unreadable", "mgd.margins_from")
    settings = flattened(student.origin.get("config", {}))
    return [
        (cell(key), cell(value))
        for key, value in settings.items()
        if key.startswith(kept) and key not in (*left_out, "student_weights")
    ]


def cell(value: object) -> str:
    """Text that ends neither a table's cell nor its line."""
    return printable(value).replace("|", "\\|")
