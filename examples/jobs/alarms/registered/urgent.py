# A rule: the most urgent alarm goes first, and those below 2 are dropped. Each
# item comes as its length, its kind, its priority and its bytes; each answer is
# a 0 and the item's rank, lowest first, or a 2 for an item to drop.
import json, struct, sys

while head := sys.stdin.buffer.read(4):
    kind, priority, *item = sys.stdin.buffer.read(struct.unpack(">I", head)[0])
    urgency = json.loads(bytes(item))["urgency"]
    if urgency < 2:
        sys.stdout.buffer.write(struct.pack(">BI", 2, 0))
    else:
        sys.stdout.buffer.write(struct.pack(">BIq", 0, 8, -urgency))
    sys.stdout.buffer.flush()
