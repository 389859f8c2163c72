"""Talks to a job's queues from outside: by SOAP posted by hand, and by bare sockets.

usage: outside.py BROKER_URL JOB
"""
import base64
import re
import socket
import struct
import sys
import urllib.request


def call(url, body):
    envelope = ('<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>'
                f'{body}</Body></Envelope>').encode()
    request = urllib.request.Request(url, envelope, {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def element(name, text):
    found = re.search(rf"<(?:\w+:)?{name}[^>]*>([^<]*)<", text)
    assert found, f"no {name} in {text}"
    return found.group(1)


broker, job = sys.argv[1:3]
status = call(broker, f'<GetJob xmlns="urn:mvm:1"><id>{job}</id></GetJob>')
queues = dict(re.findall(r"<outside>.*?<name>(\w+)</name>.*?<url>([^<]*)</url>.*?</outside>", status, re.S))
assert set(queues) == {"questions", "answers"}, status


def queue(operation, name, rest=""):
    return call(queues[name], f'<{operation} xmlns="urn:mvm:1"><job>{job}</job><queue>{name}</queue>{rest}</{operation}>')


# By SOAP.
said = base64.b64encode(b"by soap").decode()
assert element("accepted", queue("Enqueue", "questions", f"<item>{said}</item>")) == "1"
heard = element("item", queue("Dequeue", "answers", "<timeoutMillis>30000</timeoutMillis>"))
assert base64.b64decode(heard) == b"BY SOAP", heard


# By a token and a bare socket.
def connect(name):
    answer = queue("OpenSocket", name)
    host, port = element("address", answer).rsplit(":", 1)
    token = element("token", answer)
    s = socket.create_connection((host, int(port)), 30)
    s.sendall(f"MVM1 {token}\n".encode())
    lines = s.makefile("rb")
    assert lines.readline().startswith(b"OK "), name
    return s, lines, (host, int(port), token)


questions, _, _ = connect("questions")
answers, stream, used = connect("answers")
for i in range(100):
    item = b"by socket %d" % i
    questions.sendall(struct.pack("!I", len(item)) + item)
questions.sendall(struct.pack("!I", 0xFFFFFFFF))
answers.sendall(b"101\n")
for i in range(100):
    length, = struct.unpack("!I", stream.read(4))
    item = stream.read(length)
    assert item == b"BY SOCKET %d" % i, item
assert struct.unpack("!I", stream.read(4)) == (0xFFFFFFFF,)

# The token was good once.
again = socket.create_connection(used[:2], 30)
again.sendall(f"MVM1 {used[2]}\n".encode())
assert not again.makefile("rb").readline().startswith(b"OK"), "a token served twice"
print("ok")
