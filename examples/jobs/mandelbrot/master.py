"""Hands rows of a picture to whoever is free, and puts the picture together."""
import json
import struct
import sys
import zlib

import mvm


def colour(count, limit):
    """Black inside; outside from dark blue over white to gold."""
    if count >= limit:
        return b"\0\0\0"
    t = (count % 64) / 64
    if t < 0.5:
        return bytes((int(510 * t), int(510 * t), int(100 + 310 * t)))
    return bytes((255, int(255 - 180 * (t - 0.5)), int(255 - 470 * (t - 0.5))))


def write_png(path, width, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)
    with open(path, "wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                  + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
                  + chunk(b"IEND", b""))


def main():
    width, height, limit = (int(a) for a in sys.argv[1:4])
    workers = [mvm.open(name) for name in mvm.ports() if name.startswith("worker")]
    rows = [None] * height
    share = {worker: 0 for worker in workers}
    busy = set()
    waiting = iter(range(height))

    def hand_out(worker):
        row = next(waiting, None)
        if row is None:
            busy.discard(worker)
            worker.end()
        else:
            busy.add(worker)
            worker.enqueue(json.dumps({"row": row, "width": width, "height": height, "limit": limit}).encode())

    for worker in workers:
        hand_out(worker)
    inside = 0
    while busy:
        worker = mvm.wait(list(busy))
        answer = json.loads(worker.dequeue())
        rows[answer["row"]] = b"".join(colour(c, limit) for c in answer["counts"])
        inside += sum(c >= limit for c in answer["counts"])
        share[worker] += 1
        hand_out(worker)
    write_png("mandelbrot.png", width, rows)
    print(f"{width} x {height} points, {inside} inside; rows by worker: {' '.join(map(str, share.values()))}")


main()
