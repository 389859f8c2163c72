"""Splits lines into lower-case words."""
import re

import mvm

prev, next_ = mvm.open("prev"), mvm.open("next")
words = 0
for line in prev:
    for word in re.findall(r"[a-z]+", line.decode("ascii", "replace").lower()):
        next_.enqueue(word.encode())
        words += 1
print(f"{words} words split")
