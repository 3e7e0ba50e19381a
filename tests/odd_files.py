"""Things that stand where a file should."""

import os
import socket
from pathlib import Path


def make_odd_file(path: Path, kind: str) -> None:
    """A named pipe without a writer, a device, a socket, a folder, or a file of 10 GB that takes no room."""
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        case "folder":
            path.mkdir()
        case "large":
            path.touch(0o600)
            os.truncate(path, 10 << 30)
