"""How often something may be done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Pace:
    """So many a second, and a number at once."""

    rate: float
    burst: float
    tokens: float = field(init=False)
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.last = self.burst, time.monotonic()

    def wait(self) -> float:
        """Takes one, and gives the seconds until it is earned."""
        moment = time.monotonic()
        self.tokens = min(self.burst, self.tokens + (moment - self.last) * self.rate) - 1
        self.last = moment
        return max(0.0, -self.tokens / self.rate)

    def take(self) -> bool:
        """Takes one if it is there."""
        if self.wait() > 0:
            self.tokens += 1
            return False
        return True
