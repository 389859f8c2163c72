"""A codec that tries what a codec must not: an item names the attack, the answer
says what came of it."""
import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)


def syscall(number, *args):
    ctypes.set_errno(0)
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "it worked"


def all_fail(*attempts):
    """Every attempt must end in an error."""
    said = []
    for attempt in attempts:
        try:
            return "did %r" % (attempt(),)
        except (OSError, MemoryError, ValueError) as e:
            said.append(str(e) or type(e).__name__)
    return "no: " + "; ".join(said)


def read_job(work):
    return all_fail(*(lambda p=p: open(p).read() for p in (
        work + "/process-0/secret", "/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/self/environ", "/proc/1/cmdline", "/proc/self/maps")),
        lambda: os.listdir(work), lambda: os.listdir("/proc"), lambda: os.listdir("/root"), lambda: os.listdir("/home"))


def write(work):
    places = ["/tmp/x", "/dev/shm/x", "/var/tmp/x", "/x", "x", "/usr/x", work + "/x", os.path.dirname(__file__) + "/x", __file__]
    return all_fail(*(lambda p=p: open(p, "w") for p in places), lambda: os.mkdir("/y"), lambda: os.unlink(__file__),
        lambda: os.symlink("/", "z"), lambda: os.chmod(__file__, 0o777), lambda: os.memfd_create("x"))


def network(_):
    import socket
    return all_fail(*(lambda f=f: socket.socket(*f) for f in (
        (socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_NETLINK, socket.SOCK_RAW), (socket.AF_PACKET, socket.SOCK_RAW))), socket.socketpair)


def fork(_):
    import subprocess
    CLONE, CLONE3 = 56, 435
    def bomb():
        for _ in range(10000):
            if os.fork() == 0:
                time.sleep(1000)
    def threads():
        import threading
        try:
            for _ in range(10000):
                threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        except RuntimeError as e:
            raise OSError(str(e))
    found = [bomb, os.forkpty, lambda: subprocess.run(["/bin/true"]), lambda: os.posix_spawn("/bin/true", ["true"], {})]
    if os.uname().machine == "x86_64":
        found += [lambda: syscall(CLONE, signal.SIGCHLD, 0, 0, 0, 0), lambda: syscall(CLONE3, ctypes.create_string_buffer(88), 88), lambda: syscall(58)]
    if os.getuid() == 65534 or os.environ.get("LIMITED"):
        found.append(threads)
    return all_fail(*found)


def signals(_):
    pids = [-1, 0, os.getppid(), *range(2, 2000)]
    return all_fail(*(lambda p=p: os.kill(p, signal.SIGKILL) for p in pids if p != os.getpid()), lambda: os.killpg(0, 9), lambda: os.pidfd_open(2))


def memory(_):
    def data():
        held = []
        while True:
            held.append(bytearray(16 << 20))
            if len(held) > 1024:
                return "16 GiB"
    def shared():
        return mmap.mmap(-1, 16 << 20)
    def file():
        return mmap.mmap(os.open("/usr/bin/env", os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_WRITE)
    return all_fail(data, shared, file, lambda: resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40)))


def privileges(_):
    found = [lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot("/"), lambda: os.nice(-5), lambda: libc.ptrace(0, 0, 0, 0) == 0 and None or all_denied()]
    def all_denied():
        raise OSError("ptrace")
    for name in ("mount", "unshare", "keyctl", "bpf", "io_uring_setup", "perf_event_open", "process_vm_readv", "userfaultfd"):
        number = {"mount": 165, "unshare": 272, "keyctl": 250, "bpf": 321, "io_uring_setup": 425, "perf_event_open": 298, "process_vm_readv": 310, "userfaultfd": 323}[name]
        if os.uname().machine == "x86_64":
            found.append(lambda n=number: syscall(n, 0, 0, 0, 0, 0, 0))
    return all_fail(*found)


def sees(_):  # LC_CTYPE is Python's own
    fds = []
    for fd in range(1000):
        try:
            os.fstat(fd)
            fds.append(fd)
        except OSError:
            pass
    return "%s %s %s" % (fds, {k: v for k, v in os.environ.items() if k != "LC_CTYPE"}, resource.getrlimit(resource.RLIMIT_FSIZE))


def crash(_):
    ctypes.string_at(0)


def leave(_):
    print("I am tired", file=sys.stderr)
    os._exit(3)


def hang(_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


def wrong(_):
    sys.stdout.buffer.write(b"\x07\0\0\0\0")
    sys.stdout.buffer.flush()
    time.sleep(1000)


def huge(_):
    sys.stdout.buffer.write(b"\0\xff\xff\xff\xff")
    sys.stdout.buffer.flush()
    time.sleep(1000)


def half(_):
    sys.stdout.buffer.write(b"\0\0\0\0\x09half")
    sys.stdout.buffer.flush()
    time.sleep(1000)


def refuse(_):
    sys.stdout.buffer.write(b"\1\0\0\0\x0cnot this one")
    sys.stdout.buffer.flush()
    return None


attacks = {f.__name__: f for f in (read_job, write, network, fork, signals, memory, privileges, sees, crash, leave, hang, wrong, huge, half, refuse)}
while head := sys.stdin.buffer.read(4):
    name, _, argument = sys.stdin.buffer.read(struct.unpack(">I", head)[0]).decode().partition(" ")
    answer = attacks[name](argument) if name in attacks else " ".join((name, *sys.argv[1:]))
    if answer is not None:
        sys.stdout.buffer.write(struct.pack(">BI", 0, len(answer.encode())) + answer.encode())
        sys.stdout.buffer.flush()
