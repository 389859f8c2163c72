"""The conformance suite's program in Python."""
import sys
import time

import mvm


def item(k, most):
    n = k * 2654435761 % (most + 1) if most else 8
    whole = bytes((j * 7) & 255 for j in range(256))
    whole = bytes((b + k * 31) & 255 for b in whole)
    return (whole * (n // 256 + 1))[:n]


def pad(k, first, size):
    whole = bytes((j * 7 + k * 31) & 255 for j in range(256))
    return (whole * (size // 256 + 1))[first:size]


def raises(kind, call, *arguments):
    try:
        call(*arguments)
    except kind:
        return
    raise AssertionError("%s did not raise %s" % (call, kind))


def every_form(out, into):
    raises(mvm.Again, into.try_dequeue)
    raises(mvm.Timeout, into.dequeue, 0.02)
    raises(mvm.Timeout, mvm.wait, [into], 0.02)
    out.try_enqueue(b"abc")
    assert mvm.wait([into], 1) is into
    assert into.try_dequeue() == b"abc"
    out.enqueue(b"")
    assert into.dequeue() == b""
    out.set_priority(9)
    out.instruct(b"source")
    out.enqueue(b"x")
    assert into.dequeue() == b"source" and into.is_instruction()
    assert into.dequeue() == b"x" and not into.is_instruction()
    most = out.largest_out
    assert most == into.largest_in > 0
    raises(mvm.TooBig, out.reserve, most + 1)
    raises(mvm.Misuse, out.commit, 1)
    raises(mvm.Misuse, into.release)
    for r in range(50):
        want = item(r, most)
        room = out.reserve(most)
        raises(mvm.Misuse, out.enqueue, b"x")
        room[:len(want)] = want
        out.commit(len(want))
        assert bytes(into.peek()) == want
        into.release()


def after_end(into):
    raises(mvm.End, into.dequeue)
    raises(mvm.End, into.try_dequeue)
    raises(mvm.End, into.peek)
    assert mvm.wait([into]) is into


def far(name):
    port = mvm.open(name)
    every_form(port, port)
    port.end()
    raises(mvm.Closed, port.enqueue, b"x")
    after_end(port)
    print("ok")


def fill(name):
    port, filled = mvm.open(name), 0
    big = bytes(port.largest_out)
    raises(mvm.TooBig, port.try_enqueue, big + b"x")
    try:
        while True:
            port.try_enqueue(big)
            filled += 1
    except mvm.Again:
        pass
    assert filled > 0
    raises(mvm.Timeout, port.enqueue, big, 0.02)
    print(filled)


def forms():
    out, into = mvm.open("out"), mvm.open("in")
    every_form(out, into)
    most = out.largest_out
    big = bytes(most)
    out.try_enqueue(big)
    out.try_enqueue(big)
    raises(mvm.Again, out.try_enqueue, big)
    raises(mvm.Timeout, out.enqueue, big, 0.02)
    raises(mvm.TooBig, out.try_enqueue, big + b"x")
    out.end()
    raises(mvm.Closed, out.enqueue, b"x")
    assert [len(b) for b in into] == [most, most]
    after_end(into)
    raises(mvm.Direction, into.enqueue, b"")
    raises(mvm.Error, mvm.open, "nowhere")
    assert mvm.ports() == ["out", "in"]
    assert (mvm.index(), mvm.count(), mvm.task()) == (2, 5, "alone")
    print("ok")


def main(verb, *a):
    if verb == "send":
        p = mvm.open(a[0])
        for k in range(int(a[1])):
            p.enqueue(item(k, int(a[2])))
    elif verb == "receive":
        k = 0
        for got in mvm.open(a[0]):
            assert got == item(k, int(a[1])), "item %d" % k
            k += 1
        raises(mvm.End, mvm.open(a[0]).dequeue)
        print(k)
    elif verb == "again":
        counts, which = [0, 0], 0
        while True:
            try:
                mvm.open(a[0]).dequeue()
                counts[which] += 1
            except mvm.End:
                if counts[1]:
                    break
                which = 1
                open(a[1], "w").close()
                time.sleep(0.001)
        print(*counts)
    elif verb == "wait":
        live, everything = [mvm.open(name) for name in a], 0
        while live:
            p = mvm.wait(live, 10)
            try:
                p.try_dequeue()
                everything += 1
            except mvm.End:
                live.remove(p)
        print(everything)
    elif verb == "give":
        p, refused = mvm.open(a[0]), 0
        for k in range(int(a[2])):
            head = b"%s %d\n" % (a[1].encode(), k)
            size = max(len(head), k * 2654435761 % (int(a[3]) + 1))
            p.set_priority(k % int(a[4]) if int(a[4]) else 0)
            try:
                p.enqueue(head + pad(k, len(head), size))
            except mvm.Full:
                refused += 1
        print(refused)
    elif verb == "insist":
        p = mvm.open(a[0])
        for k in range(int(a[1])):
            while True:
                try:
                    p.enqueue(b"p0 %d\n" % k)
                    break
                except mvm.Closed:
                    time.sleep(0.0005)
    elif verb == "gather":
        p = mvm.open(a[0])
        while True:
            try:
                if a[1] == "timed":
                    got = p.dequeue(0.003)
                elif a[1] == "try":
                    got = p.try_dequeue()
                else:
                    if a[1] == "wait":
                        mvm.wait([p])
                    got = p.dequeue()
            except (mvm.Timeout, mvm.Again):
                time.sleep(0.0002)
                continue
            except mvm.End:
                break
            head = got[:got.index(b"\n")].decode()
            k = int(head.split()[1])
            assert got[len(head) + 1:] == pad(k, len(head) + 1, len(got)), "a garbled item"
            print(head, flush=True)
    elif verb == "forms":
        forms()
    elif verb == "far":
        far(*a)
    elif verb == "fill":
        fill(*a)


main(*sys.argv[1:])
