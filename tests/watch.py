"""Watch this process: files that it writes outside its folders, hosts that it asks for.

An audit hook hears of both before they happen, and lets neither happen. (It does not hear of what a
library does without Python; `strace` on Linux does.)
"""

import os
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
HERE = ("localhost", "127.0.0.1", "::1", "", None)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events, and which argument is the path that comes to be or goes, or the host.
CHANGING = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0}
CHANGING |= {"os.rename": 1, "os.link": 1, "os.symlink": 1}
ASKING = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.connect": 1}


def own_folders() -> list[Path]:
    """Where files may be written, as the README says."""
    import matplotlib
    from IPython.paths import get_ipython_dir
    from jupyter_core.paths import jupyter_runtime_dir

    folders = [PROJECT, tempfile.gettempdir(), "/dev", os.environ.get("WALKTHROUGH_ROOT", PROJECT)]
    folders += [matplotlib.get_cachedir(), matplotlib.get_configdir()]
    folders += [get_ipython_dir(), jupyter_runtime_dir()]
    return [Path(folder).resolve() for folder in folders]


class Watch:
    """What was heard since `folders` were set.

    Attributes:
        folders: where files may be written; None: nobody listens.
        written: paths elsewhere.
        hosts: that were asked for.
    """

    def __init__(self):
        self.folders: list[Path] | None = None
        self.written: list[str] = []
        self.hosts: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event, args):
        if self.folders is None:
            return
        if event in ASKING:
            self.hear_host(args[ASKING[event]])
        elif event == "open" and args[2] & WRITING or event == "os.truncate":
            self.hear_path(args[0], event)
        elif event in CHANGING and args[-1] == -1:  # else it is below an open folder
            self.hear_path(args[CHANGING[event]], event)

    def hear_host(self, host):
        host = host[0] if isinstance(host, tuple) else host
        host = host.decode() if isinstance(host, bytes) else host
        if host not in HERE and not os.path.isabs(host):  # a path: a socket of this machine
            self.hosts.append(host)
            raise ConnectionRefusedError(f"{host} was asked for")

    def hear_path(self, path, event):
        if isinstance(path, int):  # an open file
            return
        folders, self.folders = self.folders, None  # resolving a path is heard, too
        path = Path(os.fsdecode(path)).absolute()
        inside = (path.parent.resolve() / path.name).parents
        self.folders = folders
        if not set(folders) & {path, *inside} and "__pycache__" not in path.parts:
            self.written.append(f"{event} {path}")
            raise PermissionError(f"{event} {path}, which is not among {folders}")


if __name__ == "__main__":  # in a notebook's kernel, until it ends
    Watch().folders = own_folders()
