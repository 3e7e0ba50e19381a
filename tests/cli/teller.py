"""A daemon whose tails say what a test puts into them."""

import os

from tests.bus.recorder import Recorder


class Teller(Recorder):
    """A Recorder whose tails carry these bytes."""

    text = b""
    is_endless = False

    async def open_tail(self, rules: list[str], limit: int) -> int:
        await self._note("open_tail", tuple(rules), limit)
        reading, writing = os.pipe()
        os.write(writing, self.text)
        if self.is_endless:
            self.pipes.append(writing)
        else:
            os.close(writing)
        return reading
