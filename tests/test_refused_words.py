"""Words of a command line that nobody can take: one sentence with the value, the choices and the nearest one."""

import pytest

from mgd_ssl.cli import main
from mgd_ssl.errors import UserError
from tests.given import parsed

RUN = ("--out", "run", "--data.train", "photos")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("export RUN --out x --format onx", "format is 'onx', did you mean 'onnx'?: choose 'torchvision', 'timm', "),
        ("export RUN --out x --surce y", "--surce is no option of mgd-ssl export: mgd-ssl export --help lists its opt"),
        ("export RUN again --out x", "'again' belongs to no option of mgd-ssl export: mgd-ssl export --help lists its"),
        ("bench --terms mgd sed", "terms.1 is 'sed', did you mean 'seed'?: choose 'mgd', 'seed', 'disco', "),
        ("bench --rounds=2.0", "rounds is '2.0': give a whole number"),
        ("knn --chekpoint RUN", "--chekpoint is no option of mgd-ssl knn, did you mean --checkpoint?: mgd"),
        ("linear --seedz 1", "--seedz is no option of mgd-ssl linear, did you mean --seeds?: mgd-ssl linear"),
        ("detect --out", "--out has no value: write one after it, mgd-ssl detect --help says which"),
        ("doctor --jsn", "--jsn is no option of mgd-ssl doctor, did you mean --json?: mgd-ssl doctor --help lists its"),
        ("launch slurm --nodes x -- knn", "nodes is 'x': give a whole number"),
        ("launch local -- pretrain --sede 1", "--sede is no option of mgd-ssl pretrain, did you mean --seed?: mgd-ssl"),
    ],
)  # fmt: skip
def test_every_command_tells_of_a_word_in_one_sentence(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"mgd-ssl: {said}") and told.err.count("\n") == 1, told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data.recipe", "v3"), "data.recipe is 'v3': choose 'v2', 'v1' or 'weak'"),
        (("--runtime.device", "gpu"), "runtime.device is 'gpu': choose 'auto', 'cpu', 'cuda' or 'mps'"),  # not: cpu?
        (("--log", "wandb", "mlfow"),
         "log.1 is 'mlfow', did you mean 'mlflow'?: choose 'wandb', 'mlflow' or 'trackio'"),
        (("--optim.lr", "fast"), "optim.lr is 'fast': give a number"),
        (("--seed", "1", "--seed", "x"), "seed is 'x': give a whole number"),
        (("--data.workers", "None", "--optim.epochs", "x"), "optim.epochs is 'x': give a whole number"),
        (("--data.crop-scale", "0.2"), "data.crop_scale.1 is missing: give it too"),
        (("--mgd.matching-epochs", "1", "x"), "mgd.matching_epochs.1 is 'x': give a whole number"),
        (("--runtime.compile", "maybe"), "runtime.compile is 'maybe': write true or false"),
        (("--runtime.channels-last", "--seed", "x"), "seed is 'x': give a whole number"),
        (("--moco.dim", "-1", "--moco.queue", "9"), "moco.dim is -1: set it to 1 or more"),
        (("--moco.queue-sise", "9"), "--moco.queue-sise is no option of mgd-ssl pretrain, did you mean "
                                     "--moco.queue-size?: mgd-ssl pretrain --help lists its options"),
        (("--optim.temperature", "9"), "--optim.temperature is no option of mgd-ssl pretrain, did you mean "
                                       "--moco.temperature?: mgd-ssl pretrain --help lists its options"),
        (("--data.crop-scale", "0.2", "1", "3"), "'3' belongs to no option of mgd-ssl pretrain: mgd-ssl pretrain "
                                                 "--help lists its options"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_word(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as refused:
        parsed(*words)
    assert str(refused.value) == said
