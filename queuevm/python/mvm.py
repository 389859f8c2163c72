"""What a Python program of an MVM job calls.

A program opens ports by name and enqueues or dequeues items (bytes of any
length). Who is at the other end is decided outside the program:

    import mvm
    p = mvm.open("next")
    p.enqueue(b"hello")
    for item in mvm.open("prev"):   # until END
        print(item)

Times are seconds, None waits for ever. It speaks through libmvm.so, which
MVM_LIBRARY names; ring and waiting are the C client's.
"""

import ctypes
import os
import threading

__all__ = ["open", "wait", "ports", "task", "index", "count", "Port",
           "Error", "End", "Closed", "Lost", "TooBig", "Again", "Timeout", "Broken", "Direction", "Misuse", "Full"]


class Error(Exception):
    """Anything that went wrong with a port."""


class End(Error):
    """The giver has finished and everything was taken; stays so."""


class Closed(Error):
    """The taker is gone: the item will not be taken."""


class Lost(Error):
    """The link to the other end is lost; items may be missing."""


class TooBig(Error):
    """The item does not fit this form of the call."""


class Again(Error):
    """A try form would have to wait."""


class Timeout(Error, TimeoutError):
    """Nothing happened in time."""


class Broken(Error):
    """The channel's shared memory holds garbage."""


class Direction(Error):
    """The port does not lead that way."""


class Misuse(Error):
    """commit without reserve, release without peek, or a bad argument."""


class Full(Error):
    """The queue is full and refuses the item, as its policy is."""


_BY_CODE = {-1: End, -2: Closed, -3: Lost, -4: TooBig, -5: Again, -6: Timeout, -7: Broken, -8: Direction, -9: Misuse, -11: Full}

# Blocking calls return to Python this often, so that Ctrl-C is heard.
_SLICE_MS = 200


def _slices():
    """How long a wait without a limit sleeps at a time. A signal ends a slice;
    only one that comes just before it began waits for its end. They grow, for
    no deadlock is found among many processes that each wake up often."""
    ms = _SLICE_MS
    while True:
        yield ms
        ms = min(4 * ms, 60000)


def _load():
    path = os.environ.get("MVM_LIBRARY", "libmvm.so")
    try:
        lib = ctypes.CDLL(path, use_errno=True)
    except OSError as e:
        if "MVM_CONTROL" not in os.environ:
            raise Error("not run by MVM: the program was started by hand, so it has no ports; "
                        "run it with `mvm lab PROFILE`") from None
        raise Error("the client library %s cannot be loaded: %s" % (path, e)) from None
    p, size, ssize, i, long = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_long
    for name, result, arguments in (
            ("open", p, [ctypes.c_char_p]), ("close", i, [p]), ("end", i, [p]),
            ("can_enqueue", i, [p]), ("can_dequeue", i, [p]), ("largest", size, [p, i]),
            ("enqueue", i, [p, ctypes.c_char_p, size]), ("instruct", i, [p, ctypes.c_char_p, size]),
            ("is_instruction", i, [p]),
            ("enqueue_timed", i, [p, ctypes.c_char_p, size, long]),
            ("try_enqueue", i, [p, ctypes.c_char_p, size]),
            ("try_dequeue", ssize, [p, p, size]),
            ("dequeue_alloc", ssize, [p, ctypes.POINTER(p)]), ("next_length", ssize, [p]),
            ("reserve", i, [p, size, ctypes.POINTER(p)]), ("commit", i, [p, size]),
            ("peek", ssize, [p, ctypes.POINTER(p)]), ("release", i, [p]),
            ("enqueue_slice", i, [p, ctypes.c_char_p, size, long]), ("set_priority", i, [p, i]),
            ("wait", i, [ctypes.POINTER(p), i, long]), ("wait_slice", i, [ctypes.POINTER(p), i, long]),
            ("task", ctypes.c_char_p, []), ("index", i, []), ("count", i, []),
            ("ports", ctypes.POINTER(ctypes.c_char_p), []),
            ("strerror", ctypes.c_char_p, [i]), ("error", ctypes.c_char_p, [])):
        f = getattr(lib, "mvm_" + name)
        f.restype, f.argtypes = result, arguments
    libc = ctypes.CDLL(None)
    libc.free.argtypes = [p]
    return lib, libc.free


_lock = threading.Lock()  # guards the two below
_library = None
_ports = {}


def _lib():
    global _library
    with _lock:
        if _library is None:
            _library = _load()
        return _library[0]


def _check(code):
    if code < 0:
        raise _BY_CODE.get(code, Error)(_library[0].mvm_strerror(code).decode())
    return code


class Port:
    """One named port; get it from open(). Threads may share it: the calls of
    one direction take turns."""

    def __init__(self, name, handle, lib):
        self.name = name
        self._p, self._lib = handle, lib
        self._out, self._in = threading.Lock(), threading.Lock()
        self._buffer = ctypes.create_string_buffer(64 << 10)
        self._handles = (ctypes.c_void_p * 1)(handle)

    # Asked each time: while the job runs an edge may be led elsewhere.

    @property
    def can_enqueue(self):
        return bool(self._lib.mvm_can_enqueue(self._p))

    @property
    def can_dequeue(self):
        return bool(self._lib.mvm_can_dequeue(self._p))

    @property
    def largest_out(self):
        """The largest item, in bytes, that the try, timed and reserve forms take."""
        return self._lib.mvm_largest(self._p, 1)

    @property
    def largest_in(self):
        """The same for the try, timed and peek forms."""
        return self._lib.mvm_largest(self._p, 0)

    def enqueue(self, item, timeout=None):
        """Enqueues one item (bytes) and blocks while there is no room; with a
        timeout, in seconds, raises Timeout, and TooBig over largest_out. Closed
        when the taker is gone."""
        item = bytes(item)
        with self._out:
            if timeout is not None:
                _check(self._lib.mvm_enqueue_timed(self._p, item, len(item), max(1, int(timeout * 1000))))
                return
            code = self._lib.mvm_try_enqueue(self._p, item, len(item))
            slices = _slices()
            while code in (-5, -6):
                code = self._lib.mvm_enqueue_slice(self._p, item, len(item), next(slices))
            if code == -4:  # in fragments, once begun not given up
                code = self._lib.mvm_enqueue(self._p, item, len(item))
            _check(code)

    def instruct(self, item):
        """Enqueues an instruction instead of data: source (bytes) for a processor to
        build and to apply to the items after it (LAYOUT.md, "Instructions")."""
        item = bytes(item)
        with self._out:
            _check(self._lib.mvm_instruct(self._p, item, len(item)))

    def is_instruction(self):
        """Whether the item that was dequeued or peeked last is an instruction."""
        with self._in:
            return bool(self._lib.mvm_is_instruction(self._p))

    def try_enqueue(self, item):
        """Enqueues without waiting, or raises Again; TooBig over largest_out."""
        item = bytes(item)
        with self._out:
            _check(self._lib.mvm_try_enqueue(self._p, item, len(item)))

    def dequeue(self, timeout=None):
        """Dequeues one item, blocking until there is one; with a timeout, in
        seconds, raises Timeout. End once the giver has finished and everything
        was taken."""
        with self._in:
            n = self._lib.mvm_try_dequeue(self._p, self._buffer, len(self._buffer))
            while n == -5:
                self._await(timeout)
                n = self._lib.mvm_try_dequeue(self._p, self._buffer, len(self._buffer))
                if timeout is not None:
                    break
            if n == -4:  # bigger than the buffer, or in fragments
                return self._whole()
            return self._buffer.raw[:_check(n)] if n > 4096 else ctypes.string_at(self._buffer, _check(n))

    def try_dequeue(self):
        """Dequeues without waiting, or raises Again."""
        with self._in:
            n = self._lib.mvm_try_dequeue(self._p, self._buffer, len(self._buffer))
            return self._whole() if n == -4 else ctypes.string_at(self._buffer, _check(n))

    def set_priority(self, priority):
        """The priority of the items that are enqueued from now on, 0 to 255; 0 at
        first. A priority queue hands out the highest first; others ignore it."""
        with self._out:
            _check(self._lib.mvm_set_priority(self._p, priority))

    def _await(self, timeout):
        if _wait(self._lib, self._handles, 1, timeout) >= 0:
            return
        raise Timeout("nothing came to %s within %s seconds" % (self.name, timeout))

    def _whole(self):
        memory = ctypes.c_void_p()
        n = _check(self._lib.mvm_dequeue_alloc(self._p, ctypes.byref(memory)))
        try:
            return ctypes.string_at(memory, n)
        finally:
            _library[1](memory)

    def reserve(self, length):
        """A writable memoryview of length bytes within the channel, blocking
        until there is room: zero copy. commit() enqueues it."""
        with self._out:
            room = ctypes.c_void_p()
            _check(self._lib.mvm_reserve(self._p, length, ctypes.byref(room)))
            return memoryview((ctypes.c_ubyte * length).from_address(room.value)).cast("B")

    def commit(self, length):
        """Enqueues the first length bytes of what reserve() gave."""
        with self._out:
            _check(self._lib.mvm_commit(self._p, length))

    def peek(self):
        """A read-only memoryview of the next item, in place, blocking: zero
        copy. Valid until release()."""
        with self._in:
            self._await(None)
            item = ctypes.c_void_p()
            n = _check(self._lib.mvm_peek(self._p, ctypes.byref(item)))
            return memoryview((ctypes.c_ubyte * n).from_address(item.value)).cast("B").toreadonly()

    def release(self):
        """Takes the peeked item off."""
        with self._in:
            _check(self._lib.mvm_release(self._p))

    def end(self):
        """Finishes the way out: the taker gets END after what was enqueued."""
        _check(self._lib.mvm_end(self._p))

    def close(self):
        """Finishes the port for good, both ways. The end of the program does too."""
        _check(self._lib.mvm_close(self._p))

    def __iter__(self):
        """Items until END."""
        while True:
            try:
                yield self.dequeue()
            except End:
                return

    def __repr__(self):
        return "<mvm.Port %s>" % self.name


def open(name):
    """Opens a port by the name the topology gave it. The same name gives the
    same port again. Error says why not, for example that the program was not
    run by MVM."""
    lib = _lib()
    with _lock:
        if name not in _ports:
            handle = lib.mvm_open(name.encode())
            if not handle:
                raise Error(lib.mvm_error().decode())
            _ports[name] = Port(name, handle, lib)
        return _ports[name]


def wait(ports, timeout=None):
    """Waits until an item, or an end, can be dequeued from one of the ports, and
    returns the first such port; Timeout after timeout seconds."""
    lib, ports = _lib(), list(ports)
    if not ports:
        raise Misuse("wait on no port")
    handles = (ctypes.c_void_p * len(ports))(*[p._p for p in ports])
    return ports[_check(_wait(lib, handles, len(ports), timeout))]


def _wait(lib, handles, n, timeout):
    """mvm_wait in slices, so that Ctrl-C is heard. A limit of 0 or less looks once."""
    if timeout is not None:
        left = int(timeout * 1000)
        while True:
            k = lib.mvm_wait(handles, n, max(0, min(left, _SLICE_MS)))
            left -= _SLICE_MS
            if k != -6 or left <= 0:
                return k
    k, slices = -6, _slices()
    try:
        while k == -6:
            k = lib.mvm_wait_slice(handles, n, next(slices))
    finally:
        if k == -6:  # interrupted: what was asked for must not come later
            lib.mvm_wait(handles, n, 0)
    return k


def ports():
    """The names of this process's ports."""
    lib = _lib()
    names = lib.mvm_ports()
    if not names:
        raise Error(lib.mvm_error().decode())
    try:
        found, k = [], 0
        while names[k]:
            found.append(names[k].decode())
            k += 1
        return found
    finally:
        _library[1](ctypes.cast(names, ctypes.c_void_p))


def task():
    """This process's task in the profile, "" outside a job."""
    return os.environ.get("MVM_TASK", "")


def index():
    """This process's index within its task, over all nodes; -1 outside a job."""
    return int(os.environ.get("MVM_INDEX", -1))


def count():
    """How many processes the task has, over all nodes; -1 outside a job."""
    return int(os.environ.get("MVM_COUNT", -1))
