"""The process that every sandbox comes from; run by path, with nothing but the standard library.

The server starts one and talks to it over a SEQPACKET socket. It is small and single-threaded, so
that it can fork in no time and that the death signal of its children (PR_SET_PDEATHSIG follows the
parent's *thread*) means the death of this process. When the server is gone the socket ends; then
it kills whatever it has started, waits for it and ends too.

Requests are JSON with file descriptors attached:

`{"op": "stub", "id", "group", "values": [{file: value}], "disk", "inodes"}` + [socket]
    Forks a stub: a process in control groups of its own, `group` in each of the given folders, in a mount namespace of its own with a tmpfs of
    `disk` bytes, which waits on its socket. There it says `ready` with its pidfd, or `error TEXT`;
    then it takes one message, `{"fds", "bwrap", "rlimits", "disk", "network", "agent"}` +
    [argv, *files], and becomes bwrap. Its socket is file descriptor 3 of bwrap. With `agent` it
    says `agent` before that, with a socket that listens at `agent` in its file system.
`{"op": "users"}` + [socket]
    Makes a user namespace that maps 65,536 users, and sends its descriptor to the socket.

When a stub, what it became and every process below are dead, `{"gone": id}` is sent back. A bwrap
that is killed before its child has asked for a death signal leaves that child to this process,
which is the subreaper, and kills what it did not start itself.

As root everything is kept out of reach of what runs: all stubs drop to an unprivileged user, and
what they need is bound to a place in a private mount namespace that this user can enter, wherever
the server's own folders are. Without root a stub is in a user namespace instead.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 0x1, 0x2, 0x4, 0x20
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 0x1000, 0x4000, 0x40000, 0x80000
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STUB_FD = 3
AGENT = "agent"
FIRST_FREE_FD = 100
"""Descriptors that have yet to find their number wait above this one."""
MAX_FDS = 32
MAX_MESSAGE = 1 << 16
OOM_SCORE = "500"
"""When the whole machine is out of memory, sandboxes go before the server."""
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc")
"""Where the libraries of bwrap are, and how they are found."""
CHILDREN = "/proc/self/task/{}/children"

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]


class Config:
    """What the server has decided.

    `place` is where stubs find things, a folder that is there on every machine. They run as `uid`,
    None for the user that this process already is. `binds` maps names below `place` to the folders
    that appear there (only with a `uid`). `upper` is where a stub's file system is mounted,
    `cgroups` are the folders in which sandboxes get their control groups.
    """

    def __init__(self, text: str) -> None:
        fields: dict[str, Any] = json.loads(text)
        self.fd: int = fields["fd"]
        self.place: str = fields["place"]
        self.uid: int | None = fields["uid"]
        self.users: int = fields["users"]
        self.binds: dict[str, str] = fields["binds"]
        self.upper: str = fields["upper"]
        # Open, because the way to them may be closed later.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self.cgroups = [os.open(folder, flags) for folder in fields["cgroups"]]


def check(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode())
    check(libc.mount(*arguments), f"mount {kind or 'on'} {target}")


def write(path: str, text: str, folder: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One message and the descriptors with it; ({}, []) at the end."""
    size = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, size, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for _level, _type, packed in ancillary:
        fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
    return (json.loads(data) if data else {}), list(fds)


def send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights)


def drop_privileges(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def die_with_parent(parent: int) -> None:
    """To be said again after every change of credentials, which takes it back (prctl(2))."""
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def private_place(config: Config) -> None:
    """Gives this process mounts of its own, and binds what stubs need below `place`."""
    check(libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", "", MS_REC | MS_SLAVE)
    held = {name: os.open(path, os.O_PATH | os.O_CLOEXEC) for name, path in config.binds.items()}
    mount("cmdsvc", config.place, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0711")
    mount("none", config.place, "", MS_PRIVATE)
    for name, fd in held.items():
        target = f"{config.place}/{name}"
        os.mkdir(target)  # noqa: PTH102
        mount(f"/proc/self/fd/{fd}", target, "", MS_BIND)
        os.close(fd)
    os.makedirs(config.upper, exist_ok=True)  # noqa: PTH103
    for point in reversed(mount_points()):
        if not needed(point, config.place):
            libc.umount2(os.fsencode(point), MNT_DETACH)


def mount_points() -> list[str]:
    with open("/proc/self/mountinfo", "rb") as file:  # noqa: PTH123
        names = [line.split(b" ")[4] for line in file]
    return [os.fsdecode(name.decode("unicode_escape").encode("latin-1")) for name in names]


def needed(point: str, place: str) -> bool:
    """Whether a mount has what bwrap needs. It looks through all there are, a dozen times a run."""
    if point in {"/", "/proc", "/dev"}:
        return True
    return any(
        f"{point}/".startswith(f"{path}/") or path.startswith(f"{point}/")
        for path in (place, *SYSTEM)
    )


def prepare(config: Config, request: dict[str, Any], parent: int) -> None:
    """What takes time and can be done before anybody asks for a run."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    write("/proc/self/oom_score_adj", OOM_SCORE)
    group = request["group"]
    for folder, values in zip(config.cgroups, request["values"], strict=True):
        os.mkdir(group, dir_fd=folder)
        for name, value in values.items():
            write(f"{group}/{name}", value, folder)
        write(f"{group}/cgroup.procs", "0", folder)
    options = f"size={request['disk']},nr_inodes={request['inodes']},mode=0700"
    if config.uid is None:
        uid, gid = os.getuid(), os.getgid()
        check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
        die_with_parent(parent)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{uid} {uid} 1")
        write("/proc/self/gid_map", f"{gid} {gid} 1")
    else:
        check(libc.unshare(CLONE_NEWNS), "unshare")
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        options += f",uid={config.uid},gid={config.uid}"
    mount("cmdsvc", config.upper, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for name, mode in (("root", 0o755), ("work", 0o755), ("root/tmp", 0o1777), ("shm", 0o1777)):
        path = f"{config.upper}/{name}"
        os.mkdir(path)  # noqa: PTH102
        os.chmod(path, mode)  # noqa: PTH101
        if config.uid is not None:
            os.chown(path, config.uid, config.uid)


def become(config: Config, sock: socket.socket, parent: int) -> NoReturn:
    """Waits for the run and executes bwrap for it."""
    message, fds = receive(sock)
    if not message:
        os._exit(0)
    if message["disk"]:
        mount("cmdsvc", config.upper, "", MS_REMOUNT | MS_NOSUID | MS_NODEV, message["disk"])
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)
        argv = file.read().split(b"\0")[:-1]
    if message["agent"]:
        send_listener(config, sock)
    network = fds.pop() if message["network"] else -1
    if network >= 0:
        check(libc.setns(network, CLONE_NEWNET), "setns")
    for what, soft, hard in message["rlimits"]:
        limit = (ctypes.c_ulong * 2)(soft, hard)
        check(libc.setrlimit(what, limit), "setrlimit")
    waiting = [high(fd) for fd in (*fds[1:], sock.fileno())]
    for fd, number in zip(waiting, (*message["fds"], STUB_FD), strict=True):
        os.dup2(fd, number, inheritable=True)
    if config.uid is not None:
        drop_privileges(config.uid)
    die_with_parent(parent)
    os.execve(message["bwrap"], argv, {})  # noqa: S606 - no shell is wanted


def send_listener(config: Config, sock: socket.socket) -> None:
    """For the one user that programs in the sandbox begin as."""
    os.chdir(config.upper)  # the name of a socket can be no longer than 107 bytes (unix(7))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(AGENT)
        os.chmod(AGENT, 0o600)  # noqa: PTH101
        if config.uid is not None:
            os.chown(AGENT, config.uid, config.uid)
        listener.listen()
        send(sock, AGENT.encode(), [listener.fileno()])
    os.chdir("/")


def high(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)


class Spawner:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.control = socket.socket(fileno=config.fd)
        self.control.set_inheritable(False)
        self.pid = os.getpid()
        self.children = CHILDREN.format(self.pid)
        self.stubs: dict[int, int] = {}
        """Process id to what the server calls it."""
        self.orphans: set[int] = set()
        self.ending: list[tuple[int, set[int]]] = []
        """Stubs that are dead, and the orphans that have to follow."""
        self.groups: dict[int, str] = {}

    def run(self) -> None:
        # What the server's own parent may have had ignored or blocked is not for programs. Stubs
        # inherit it, but for what this process ignores itself.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        self.control.send(b'{"ready": true}')
        while True:
            ready = dict(poll.poll())
            if wake in ready:
                os.read(wake, 4096)
                self.reap()
            if self.control.fileno() in ready:
                request, fds = receive(self.control)
                if not request:
                    return
                self.serve(request, fds)

    def serve(self, request: dict[str, Any], fds: list[int]) -> None:
        with socket.socket(fileno=fds[0]) as sock:
            try:
                if request["op"] == "stub":
                    self.stub(request, sock)
                else:
                    users = self.users()
                    send(sock, b"ready", [users])
                    os.close(users)
            except OSError as error:
                report(sock, error)

    def stub(self, request: dict[str, Any], sock: socket.socket) -> None:
        pid = os.fork()
        if pid == 0:
            self.as_stub(request, sock)
        self.stubs[pid] = request["id"]
        self.groups[request["id"]] = request["group"]

    def as_stub(self, request: dict[str, Any], sock: socket.socket) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            die_with_parent(self.pid)
            self.control.close()
            prepare(self.config, request, self.pid)
            pidfd = os.pidfd_open(os.getpid())
            send(sock, b"ready", [pidfd])
            become(self.config, sock, self.pid)
        except BaseException as error:  # noqa: BLE001 - the end of a forked process
            report(sock, error)
        finally:
            os._exit(1)

    def users(self) -> int:
        """A user namespace that maps many users, owned by the one who runs sandboxes.

        Nobody in it can make another one.
        """
        uid = self.config.uid
        assert uid is not None  # noqa: S101 - the server asks only then
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                drop_privileges(uid)
                check(libc.unshare(CLONE_NEWUSER), "unshare")
                die_with_parent(self.pid)
                theirs.send(b"made")
                theirs.recv(1)
                write("/proc/sys/user/max_user_namespaces", "0")
                theirs.send(b"closed")
                signal.pause()
            except BaseException as error:  # noqa: BLE001 - the end of a forked process
                report(theirs, error)
            finally:
                os._exit(1)
        try:
            theirs.close()
            expect(ours, b"made")
            for name in ("uid_map", "gid_map"):
                write(f"/proc/{pid}/{name}", f"0 {uid} {self.config.users}")
            ours.send(b".")
            expect(ours, b"closed")
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            ours.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def reap(self) -> None:
        dead = []
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self.orphans.discard(pid)
            if pid in self.stubs:
                dead.append(self.stubs.pop(pid))
        if dead:
            self.kill_orphans()
            self.ending += [(name, set(self.orphans)) for name in dead]
        still = []
        for name, orphans in self.ending:
            if left := orphans & self.orphans:
                still.append((name, left))
            else:
                self.groups.pop(name, None)
                self.control.send(json.dumps({"gone": name}).encode())
        self.ending = still

    def kill_orphans(self) -> None:
        """Kills the children that this process has not started: bwrap's, which it has left."""
        with open(self.children) as file:  # noqa: PTH123
            pids = {int(word) for word in file.read().split()}
        for pid in pids - self.stubs.keys() - self.orphans:
            os.kill(pid, signal.SIGKILL)
            self.orphans.add(pid)

    def end(self) -> None:
        """Leaves nothing behind: the server is gone and cannot do it."""
        for pid in self.stubs:
            os.kill(pid, signal.SIGKILL)
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
            self.kill_orphans()
        for group in self.groups.values():
            for folder in self.config.cgroups:
                try:
                    os.rmdir(group, dir_fd=folder)
                except OSError:  # the next server will try again
                    continue


def expect(sock: socket.socket, word: bytes) -> None:
    data = sock.recv(MAX_MESSAGE)
    if data != word:
        raise OSError(0, f"no user namespace can be made: {data.decode('utf-8', 'replace')}")


def report(sock: socket.socket, error: BaseException) -> None:
    number = error.errno if isinstance(error, OSError) else 0
    text = json.dumps({"errno": number or 0, "text": str(error) or type(error).__name__})
    try:
        sock.send(b"error " + text.encode())
    except OSError:  # nobody is there to be told
        return


def main() -> None:
    config = Config(sys.argv[1])
    os.umask(0o022)
    os.chdir("/")
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    spawner = Spawner(config)
    try:
        if config.uid is not None:
            private_place(config)
        spawner.run()
    except OSError as error:
        report(spawner.control, error)
    finally:
        spawner.end()


if __name__ == "__main__":
    main()
