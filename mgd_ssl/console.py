"""What is shown on a terminal."""

from collections.abc import Callable
from contextlib import ExitStack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moco.dist import rank


def progress_bar(stack: ExitStack, description: str, total: int) -> Callable[[int], None]:
    """What to call with the number of things done, on rank 0 of a terminal a bar that ends with the stack."""
    console = Console(stderr=True)
    if rank() != 0 or not console.is_terminal:
        return lambda done: None
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = stack.enter_context(Progress(*columns, console=console))
    task = progress.add_task(description, total=total)
    return lambda done: progress.update(task, completed=done)
