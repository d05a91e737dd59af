"""Faults of what a user meets, the command line and tables, and of how networks lie in memory and are fused."""

from tests.mutants.fault import Fault

RUNS = ("tests/launchers/test_measured.py",)
WORDS = ("tests/test_refused_words.py",)
PLACING = ("tests/networks/test_placing.py",)
FUSED = ("tests/networks/test_fused.py",)

USE = [
    Fault("words: any word is like any other", "cutoff=ALIKE)\n    return f\", did", "cutoff=0.1)\n    return f\", did", WORDS),
    Fault("words: the parser's fault without its value", "return str(error)", "continue", WORDS, "wrong_value"),
    Fault("words: unknown options pass", "if unknown:\n        raise UserError(unknown_word", "if False:\n        raise UserError(unknown_word", WORDS),
    Fault("words: an option by the name of its field", "own[0] if own else name", "name", WORDS),
    Fault("runs: k-NN alone is a measurement", "if kind in rows:", "if kind == 'knn' and kind in rows:", RUNS),
    Fault("report: a detector ends the report of its folder", "if folder.resolve() not in named and (told :=", "if False and (told :=", RUNS),
    Fault("placing: the last stage gets what there is", "return (images[0].contiguous(),)", "return images", PLACING),
    Fault("placing: a hook for each time", "if _plain not in stage._forward_pre_hooks.values():", "if True:", PLACING),
    Fault("placing: on any device", 'if device.type == "cpu":\n        for resnet', 'if True:\n        for resnet', PLACING),
    Fault("fused: what is wrong on the device is taken", "node.target = plain", "pass", FUSED),
    Fault("fused: the network is not compared as a whole", "if why:\n        logger.warning", "if False:\n        logger.warning", FUSED),
]  # fmt: skip
