"""Computes rows of the Mandelbrot set for whoever is at the other end."""
import json

import mvm


def escape(c, limit):
    """The step at which z = z*z + c leaves the circle of radius 2, at most limit."""
    z = 0j
    for step in range(limit):
        z = z * z + c
        if z.real * z.real + z.imag * z.imag > 4:
            return step
    return limit


master = mvm.open("master")
for item in master:
    order = json.loads(item)
    width, height, row = order["width"], order["height"], order["row"]
    imaginary = (row + 0.5) / height * 2.4 - 1.2
    counts = [escape(complex((x + 0.5) / width * 3.2 - 2.2, imaginary), order["limit"]) for x in range(width)]
    master.enqueue(json.dumps({"row": row, "counts": counts}).encode())
