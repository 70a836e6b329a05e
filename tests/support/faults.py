"""Faults that tests cause: kills, full disks, flipped bytes."""
import contextlib
import os
import resource
import signal
import sys

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}


def killed_at(call, save, folder):
    """Save version 2 in a child that is killed at its n-th change of a file; whether it came so far."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event, arguments):
            nonlocal count
            if event in FILE_EVENTS and not (event == "open" and arguments[2] & os.O_ACCMODE == os.O_RDONLY):
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        with contextlib.suppress(BaseException):
            save(folder, 2)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


@contextlib.contextmanager
def files_of_at_most(size):
    """No file of this process can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
