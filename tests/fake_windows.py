"""Enough of Windows to see what would break there: what is missing, and files that are in use."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import signal
import sys
from pathlib import Path

SIGNALS = (
    "SIGHUP SIGUSR1 SIGUSR2 SIGTSTP SIGCONT SIGSTOP SIGKILL SIGQUIT SIGALRM SIGPIPE SIGCHLD "
    "pthread_sigmask SIG_BLOCK SIG_UNBLOCK SIG_SETMASK alarm setitimer pause sigwait"
)
FUNCTIONS = (
    "fork getuid geteuid getgid killpg getpgid setpgid setsid getpgrp statvfs sysconf uname "
    "mkfifo O_NONBLOCK O_NOFOLLOW O_DIRECTORY set_blocking sched_getaffinity"
)
MODULES = ("fcntl", "resource", "pwd", "grp", "termios")


def become_windows() -> None:
    """Change this process for good; what is imported already (torch) stays as it is."""
    import fcntl

    for name in [n for n in sys.modules if n.split(".")[0] in {"dreambooth", "dreambooth_plugins"}]:
        del sys.modules[name]
    sys.platform = "win32"
    for owner, names in ((signal, SIGNALS), (os, FUNCTIONS)):
        for name in names.split():
            if hasattr(owner, name):
                delattr(owner, name)
    sys.modules.update(dict.fromkeys(MODULES))
    signal.SIGBREAK = signal.SIGVTALRM
    _files(fcntl)


def _in_use(path) -> bool:
    """Say whether this process has a file open, or mapped, that is at a path or below it."""
    where = os.path.realpath(path)
    links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    files = [os.readlink(link) for link in links if os.path.lexists(link)]
    with builtins.open("/proc/self/maps") as maps:
        files += [line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")]
    return any(file == where or file.startswith(f"{where}/") for file in files)


def _files(fcntl) -> None:
    opened, sync = os.open, os.fsync

    def open_file(path, flags, *args, **kwargs):
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *args, **kwargs)

    def fsync(file):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        sync(file)

    def refusing(do, over):
        def act(path, *args, **kwargs):
            target = args[0] if args else None
            if _in_use(path) or (target is not None and _in_use(target)):
                raise PermissionError(errno.EACCES, "The file is in use", str(path))
            if (
                target is not None
                and os.path.exists(target)
                and (not over or Path(target).is_dir())
            ):
                raise FileExistsError(errno.EEXIST, "File exists", str(target))
            return do(path, *args, **kwargs)

        return act

    os.open, os.fsync = open_file, fsync
    os.replace, os.rename = refusing(os.replace, True), refusing(os.rename, False)
    os.unlink, os.remove = refusing(os.unlink, True), refusing(os.remove, True)
    shutil._use_fd_functions = False
