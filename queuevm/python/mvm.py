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
import re
import struct
import threading

__all__ = ["open", "wait", "ports", "task", "index", "count", "Port", "Collective",
           "Error", "End", "Closed", "Lost", "TooBig", "Again", "Timeout", "Broken", "Direction", "Misuse", "Full"]


class Error(Exception):
    """Anything that went wrong with a port."""


class End(Error):
    """The giver has finished and everything was taken; stays so until the port is given an edge again."""


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


class Collective:
    """A pattern over all processes of a topology: a tree, star, complete graph,
    hypercube or butterfly (over one task). A process is told neither who the
    others are nor who is the root: that is the wiring's. All processes open the
    collective and make the same calls in the same order, else Misuse; nothing else
    goes over these ports. Where a topology has a complete graph besides a tree,
    with the same prefix, alltoall takes it. After an error a collective is of no
    more use. LAYOUT.md, section 8, has the bytes; programs in other languages take
    part. One thread at a time."""

    _SETUP, _BARRIER, _BROADCAST, _REDUCE, _GATHER, _SCATTER, _ALLTOALL = range(7)

    def __init__(self, prefix=""):
        """Waits for all the others. prefix is what the topology puts before its
        ports' names."""
        #: This process's place among the members of the topology, 0 at the root,
        #: and how many there are.
        self.index, self.size = 0, 1
        self._parent, self._branches, self._calls = None, [], 0  # branches: (port, members below)
        self._peers = self._dims = None
        names = ports()
        peer = self._numbered(names, prefix, "peer")
        if peer:
            own = [k for k in range(len(peer) + 1) if k not in peer]
            if len(own) == 1:
                self._peers = [None if k == own[0] else open(peer[k]) for k in range(len(peer) + 1)]
        child = self._numbered(names, prefix, "child|leaf")
        for name in ("parent", "hub"):
            if prefix + name in names:
                self._parent = open(prefix + name)
        if child or self._parent:
            self._survey([open(child[k]) for k in sorted(child)])
            if self._peers and (len(self._peers), own[0]) != (self.size, self.index):
                raise Misuse("the tree is over %d processes, the complete graph over %d" % (self.size, len(self._peers)))
            return
        if self._peers:
            self.size, self.index = len(self._peers), own[0]
            self._lay()
            return
        dim = self._numbered(names, prefix, "dim|stage")
        if dim and sorted(dim) == list(range(len(dim))):
            self._dims = [open(dim[k]) for k in range(len(dim))]
            self.size, self.index = 1 << len(dim), index()
            if count() != self.size:
                raise Misuse("a cube of %d processes has to be over one task with so many; %s has %d" % (self.size, task(), count()))
            self._lay()
        elif count() != 1:
            raise Misuse("a collective needs ports named {0}parent or {0}child0, {0}hub or {0}leaf0, {0}peer0, {0}dim0 or "
                         "{0}stage0: let a topology be a tree, star, complete, hypercube or butterfly".format(prefix))

    @staticmethod
    def _numbered(names, prefix, words):
        pattern = re.compile("%s(?:%s)([0-9]{1,7})" % (re.escape(prefix), words))
        return {int(m.group(1)): m.group(0) for m in map(pattern.fullmatch, names) if m}

    # One item: u32 number of the call, u32 what it is, u64 bytes that follow.

    def _compose(self, call, data):
        return struct.pack("<IIQ", self._calls, call, len(data)) + data

    def _post(self, port, call, data):
        port.enqueue(self._compose(call, data))

    def _fetch(self, port, call):
        item = port.dequeue()
        if len(item) < 16 or struct.unpack_from("<IIQ", item) != (self._calls, call, len(item) - 16):
            raise Misuse("port %s: the processes make different calls" % port.name)
        return item[16:]

    def _swap(self, port, call, data, first):
        """Sends to a neighbour and takes from it: whatever the lengths, one of the
        two first sends and the other one first takes."""
        item, sent = self._compose(call, data), True
        try:
            port.try_enqueue(item)
        except (Again, TooBig):
            sent = first
            if first:
                port.enqueue(item)
        got = self._fetch(port, call)
        if not sent:
            port.enqueue(item)
        return got

    @staticmethod
    def _bundle(items):
        return b"".join(struct.pack("<Q", len(item)) + bytes(item) for item in items)

    @staticmethod
    def _unbundle(data, count):
        items, at = [], 0
        while at < len(data):
            n, = struct.unpack_from("<Q", data, at)
            items.append(data[at + 8:at + 8 + n])
            at += 8 + n
        if len(items) != count or at != len(data):
            raise Misuse("an item has another number of parts than %d" % count)
        return items

    def _survey(self, children):
        """Numbers the members of a tree level by level, as its topology does, and
        learns who is below each child: how many there are on each level goes up,
        where each level begins comes down, and who is where goes up again."""
        def numbers(data):
            return list(struct.unpack("<%dI" % (len(data) // 4), data))

        def text(items):
            return struct.pack("<%dI" % len(items), *items)

        below = [numbers(self._fetch(p, self._SETUP)) for p in children]
        total = [1]
        for levels in below:
            total += [0] * (len(levels) + 1 - len(total))
            for level, n in enumerate(levels):
                total[level + 1] += n
        if self._parent:
            self._post(self._parent, self._SETUP, text(total))
            size, *start = numbers(self._fetch(self._parent, self._SETUP))
        else:
            size, start = sum(total), [sum(total[:level]) for level in range(len(total))]
        self.size, self.index = size, start[0]
        following = start[1:]
        for p, levels in zip(children, below):
            self._post(p, self._SETUP, text([size] + following[:len(levels)]))
            for level, n in enumerate(levels):
                following[level] += n
        self._branches = [(p, numbers(self._fetch(p, self._SETUP))) for p in children]
        if self._parent:
            self._post(self._parent, self._SETUP, text(self._members()))

    def _members(self):
        return [self.index] + [k for _, members in self._branches for k in members]

    def _lay(self):
        """Lays a tree into a complete graph (binary) or a cube (binomial)."""
        def children(member):
            if self._peers:
                return [k for k in (2 * member + 1, 2 * member + 2) if k < self.size]
            free = [d for d in range(len(self._dims)) if not member & ((2 << d) - 1)]
            return [member | 1 << d for d in free]

        def below(member):
            return [member] + [k for child in children(member) for k in below(child)]

        mine = children(self.index)
        for d, child in enumerate(mine):
            self._branches.append((self._peers[child] if self._peers else self._dims[d], below(child)))
        if self.index:
            self._parent = self._peers[(self.index - 1) // 2] if self._peers else self._dims[len(mine)]

    def _up(self, call, data, combine):
        for port, _ in self._branches:
            got = self._fetch(port, call)
            if combine:
                data = combine(data, got)
        if not self._parent:
            return data
        self._post(self._parent, call, data)

    def _down(self, call, data):
        if self._parent:
            data = self._fetch(self._parent, call)
        for port, _ in self._branches:
            self._post(port, call, data)
        return data

    def barrier(self):
        """Waits until all have come."""
        self._calls += 1
        self._up(self._BARRIER, b"", None)
        self._down(self._BARRIER, b"")

    def broadcast(self, data=None):
        """Gives the root's data (bytes) to all; what others put in is ignored."""
        self._calls += 1
        return self._down(self._BROADCAST, data)

    def reduce(self, data, combine):
        """Gives everyone's data, combined, to the root, and None to the others.
        combine joins two; it has to be associative; the order in which items are
        joined is always the same."""
        self._calls += 1
        return self._up(self._REDUCE, data, combine)

    def allreduce(self, data, combine):
        """Gives it to all."""
        return self.broadcast(self.reduce(data, combine))

    def gather(self, item):
        """Gives everyone's item, in a list by index, to the root, and None to the
        others."""
        self._calls += 1
        message, found = self._bundle([item]), {self.index: item}
        for port, members in self._branches:
            got = self._fetch(port, self._GATHER)
            if self._parent:
                message += got
            else:
                found.update(zip(members, self._unbundle(got, len(members))))
        if not self._parent:
            return [found[k] for k in range(self.size)]
        self._post(self._parent, self._GATHER, message)

    def scatter(self, items=None):
        """Gives each its item of the root's, by index; what others put in is
        ignored."""
        self._calls += 1
        members = self._members()
        if self._parent:
            rest = self._unbundle(self._fetch(self._parent, self._SCATTER), len(members))
        elif len(items) != self.size:
            raise Misuse("%d items are for %d processes" % (len(items), self.size))
        else:
            rest = [items[k] for k in members]
        at = 1
        for port, members in self._branches:
            self._post(port, self._SCATTER, self._bundle(rest[at:at + len(members)]))
            at += len(members)
        return rest[0]

    def alltoall(self, items):
        """Gives the k-th of the items to the k-th member, and what each has for
        this one, in a list by index."""
        items = list(items)
        if len(items) != self.size:
            raise Misuse("%d items are for %d processes" % (len(items), self.size))
        if self._peers:
            self._calls += 1
            # Each pair meets once, in rounds in which everyone has one partner:
            # whoever waits, waits for somebody in an earlier round, or for one
            # who deals with it.
            for turn in range(self.size):
                peer = (turn - self.index) % self.size
                if peer != self.index:
                    items[peer] = self._swap(self._peers[peer], self._ALLTOALL, items[peer], self.index < peer)
            return items
        if self._dims:
            self._calls += 1
            # Along each dimension goes what belongs to the other side of it. In
            # place k is first what goes to k, and in the end what came from k.
            for d, port in enumerate(self._dims):
                here = [k for k in range(self.size) if not (k ^ self.index) >> d & 1]
                there = [k for k in range(self.size) if (k ^ self.index) >> d & 1]
                got = self._swap(port, self._ALLTOALL, self._bundle(items[k] for k in there), not self.index >> d & 1)
                for k, item in zip(here, self._unbundle(got, len(here))):  # the neighbour's k-th place is this one's k ^ 2^d
                    items[k ^ 1 << d] = item
            return items
        rows = self.gather(self._bundle(items))  # by way of the root
        if rows is not None:
            table = [self._unbundle(row, self.size) for row in rows]
            rows = [self._bundle(column) for column in zip(*table)]
        return self._unbundle(self.scatter(rows), self.size)
