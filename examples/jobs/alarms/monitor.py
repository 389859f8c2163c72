"""Reads what alarms there are, in the order in which it gets them."""
import json
import mvm

mvm.open("all").dequeue()
with open("alarms.txt", "w") as table:
    for item in mvm.open("alarms"):
        alarm = json.loads(item)
        print(alarm["urgency"], alarm["alarm"], alarm["celsius"], file=table)
