"""What takes time, in a thread of its own beside the event loop."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from conntrackd.errors import UnavailableError

T = TypeVar("T")


def start(thread: threading.Thread) -> None:
    """Raises UnavailableError where the system does not give it one, for who asked for what it does."""
    try:
        thread.start()
    except RuntimeError as error:  # how CPython says so
        raise UnavailableError("cannot start a thread for it", hint="raise TasksMax= in the unit") from error


async def run_apart(function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401  # the function's own
    """Its result, from a thread of its own. The loop's helpers stay free for a stop, which waits for none."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # there is one where there is no error

    def work() -> None:
        result, failure = None, None
        try:
            result = function(*arguments)
        except BaseException as error:  # is raised where it is waited for
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    start(threading.Thread(target=work, daemon=True, name="control"))
    return await future


async def run_to_its_end(function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401  # the function's own
    """As run_apart(), but a caller who goes away waits as well.

    Nobody can stop the thread, and the next one's turn is after this one: or calls that are given up at once
    would run side by side. Who cancels twice, as the daemon's end does, does not wait.
    """
    running = asyncio.ensure_future(run_apart(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        running.cancelled() or running.exception()  # retrieved: nobody is left to be informed
        raise
