"""A daemon whose tails say what a test puts into them."""

import os

from conntrackd.bus.control import Descriptor
from tests.bus.recorder import Recorder


class Teller(Recorder):
    """A Recorder whose tails carry these bytes."""

    text = b""
    is_endless = False

    async def tail(self, rules: list[str], limit: int) -> Descriptor:
        await self._note("open_tail", tuple(rules), limit)
        reading, writing = os.pipe()
        os.write(writing, self.text)
        if self.is_endless:
            self.pipes.append(writing)
        else:
            os.close(writing)
        return Descriptor(reading)
