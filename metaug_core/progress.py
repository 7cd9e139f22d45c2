"""Where a training run is, and the bar that says so on a terminal. A live view in a notebook is another reporter."""

from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from metaug_core.store import Run


@dataclass(frozen=True)
class Progress:
    """What a progress bar or a live view shows of a run under way."""

    run: Run
    epoch: int  # finished epochs
    step: int  # finished steps
    steps: int  # of the whole run
    loss: float
    images_per_second: float
    seconds_left: float


Reporter = Callable[[Progress], None]


class TerminalBar:
    """A tqdm bar on stderr: steps, time left, loss, images/s."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def __call__(self, at: Progress) -> None:
        if self.bar is None:
            self.bar = tqdm(total=at.steps, initial=at.step, unit="step", desc=at.run.path.name)
        self.bar.update(at.step - self.bar.n)
        self.bar.set_postfix_str(f"epoch {at.epoch}, loss {at.loss:.4f}, {at.images_per_second:,.0f} images/s")
        if at.step == at.steps:
            self.bar.close()
