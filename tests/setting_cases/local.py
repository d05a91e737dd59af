"""Local crops of a run."""

from tests.setting_cases.runs import Runs, case


@case
def data_local_crops(run: Runs) -> None:
    for batch in run("local").batches:
        assert batch.crops is not None and len(batch.crops) == 3 * len(batch.im_q)
    assert all(batch.crops is None for batch in run("plain").batches)


@case
def data_local_size(run: Runs) -> None:
    assert {batch.crops.shape[1:] for batch in run("local").batches if batch.crops is not None} == {(24, 24, 3)}
    assert run("local").shapes == {(32, 32, 3), (24, 24, 3)}


@case
def data_local_scale(run: Runs) -> None:
    for batch in run("local").batches:
        assert batch.crop_rows is not None
        width, height = batch.crop_rows[:, 2:4].T
        share = width * height / (40 * 36)
        assert share.min() > 0.08 and share.max() < 0.24  # sides are whole pixels
