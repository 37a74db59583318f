"""A web server for shards that fails in every way a server can be got over.

Usage: server.py FOLDER PORT_FILE FAULTS_FILE [--seed N] [--faults SHARE]

It serves the files of FOLDER with ranges, ETag and keep-alive on a free port of 127.0.0.1, which it writes to PORT_FILE.
`/v012-NAME` is the file NAME under one of many names. A share of the requests, drawn from the seed, goes wrong:

  cut         the connection is reset in the middle of the body
  stall       silence in the middle of the body, until the client leaves
  trickle     a kilobyte a second in the middle of the body, for 20 seconds
  busy        503 with Retry-After: 1
  error       500 or 502
  burst       429 with Retry-After: 1 for everybody, for three seconds
  wrong-range a 206 for another range than was asked for, and said so in Content-Range
  no-range    200 and the whole file, though a range was asked for
  slow-start  two to five seconds until the first byte
  outage      every two minutes or so: all connections are reset, and new ones refused, for five seconds

FAULTS_FILE gets one JSON object with the counts, renewed every few seconds. Standard library only.
"""

import argparse
import asyncio
import collections
import hashlib
import json
import os
import random
import re
import time
from pathlib import Path

PIECE = 64 * 1024
# how often each fault befalls a request, out of a thousand, before --faults scales it
PER_MILLE = {
    "cut": 60,
    "stall": 8,
    "trickle": 4,
    "busy": 30,
    "error": 15,
    "burst": 4,
    "wrong-range": 10,
    "no-range": 10,
    "slow-start": 15,
}
BURST_S = 3
OUTAGE_S = 5
OUTAGE_EVERY_S = (90, 180)


class Server:
    def __init__(self, options):
        self.folder = Path(options.folder)
        self.random = random.Random(options.seed)
        self.share = options.faults
        self.faults = collections.Counter()
        self.requests = 0
        self.bytes = 0
        self.busy_until = 0.0
        self.open = set()
        self.files = {}

    def file(self, target):
        name = re.sub(r"^/(v\d+-)?", "", target.split("?")[0])
        if "/" in name or name.startswith("."):
            return None
        if name not in self.files:
            path = self.folder / name
            if not path.is_file():
                return None
            body = path.read_bytes()
            self.files[name] = (body, '"%s"' % hashlib.sha256(body).hexdigest()[:16])
        return self.files[name]

    def draw(self):
        """The fault of this request, if it has one."""
        roll = self.random.random() * 1000
        for fault, share in PER_MILLE.items():
            roll -= share * self.share
            if roll < 0:
                return fault
        return None

    async def client(self, reader, writer):
        self.open.add(writer)
        try:
            while await self.answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()

    async def answer(self, reader, writer):
        """Answers one request; whether the connection can go on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {}
        for line in head[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        self.requests += 1

        found = self.file(target)
        if found is None:
            return await self.status(writer, "404 Not Found")
        body, etag = found
        fault = self.draw()
        if fault == "burst":
            self.busy_until = time.monotonic() + BURST_S
        if time.monotonic() < self.busy_until:
            self.faults["burst"] += 1
            return await self.status(writer, "429 Too Many Requests", "Retry-After: 1\r\n")
        if fault == "busy":
            self.faults[fault] += 1
            return await self.status(writer, "503 Slow Down", "Retry-After: 1\r\n")
        if fault == "error":
            self.faults[fault] += 1
            return await self.status(writer, self.random.choice(["500 Internal Server Error", "502 Bad Gateway"]))
        if fault == "slow-start":
            self.faults[fault] += 1
            await asyncio.sleep(self.random.uniform(2, 5))

        whole = len(body)
        begin, end, is_part = 0, whole, False
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if asked and headers.get("if-range", etag) == etag:
            begin, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else whole, whole)
            if begin >= whole:
                return await self.status(writer, "416 Range Not Satisfiable", f"Content-Range: bytes */{whole}\r\n")
            is_part = True
        if is_part and fault == "no-range":
            self.faults[fault] += 1
            begin, end, is_part = 0, whole, False
        if is_part and fault == "wrong-range":
            self.faults[fault] += 1
            moved = self.random.randrange(1, 4096)
            begin = begin - moved if begin >= moved else min(begin + moved, end - 1)
        more = f"ETag: {etag}\r\nAccept-Ranges: bytes\r\nContent-Type: application/x-tar\r\n"
        if is_part:
            more += f"Content-Range: bytes {begin}-{end - 1}/{whole}\r\n"
        status = "206 Partial Content" if is_part else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {end - begin}\r\n{more}\r\n".encode())
        if method == "HEAD":
            await writer.drain()
            return True

        halfway = None
        if fault in ("cut", "stall", "trickle"):
            self.faults[fault] += 1
            halfway = self.random.randrange(begin, end)
        return await self.send(writer, reader, body, begin, end, fault, halfway)

    async def send(self, writer, reader, body, begin, end, fault, halfway):
        at = begin
        while at < end:
            stop = min(at + PIECE, end)
            if halfway is not None and at <= halfway < stop:
                stop = halfway
            writer.write(body[at:stop])
            await writer.drain()
            self.bytes += stop - at
            at = stop
            if at != halfway:
                continue
            halfway = None
            if fault == "cut":
                writer.transport.abort()
                return False
            if fault == "stall":
                await asyncio.wait_for(reader.read(1), 300)
                return False
            trickled_until = time.monotonic() + 20
            while at < end and time.monotonic() < trickled_until:
                writer.write(body[at : at + 1024])
                await writer.drain()
                at = min(at + 1024, end)
                await asyncio.sleep(1)
        return True

    async def status(self, writer, status, more=""):
        text = status.encode() + b"\n"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n{more}\r\n".encode() + text)
        await writer.drain()
        return True

    async def outages(self, options):
        """Listens, and now and then does not for a while."""
        port = 0
        while True:
            server = await asyncio.start_server(self.client, "127.0.0.1", port)
            if port == 0:
                port = server.sockets[0].getsockname()[1]
                write(options.port_file, str(port))
            await asyncio.sleep(self.random.uniform(*OUTAGE_EVERY_S))
            if self.share == 0:
                await asyncio.Event().wait()
            self.faults["outage"] += 1
            server.close()
            for writer in list(self.open):
                writer.transport.abort()
            await asyncio.sleep(OUTAGE_S)

    async def report(self, options):
        while True:
            counts = {"requests": self.requests, "bytes": self.bytes, "faults": dict(self.faults)}
            write(options.faults_file, json.dumps(counts))
            await asyncio.sleep(3)


def write(path, text):
    aside = path + ".new"
    Path(aside).write_text(text)
    os.replace(aside, path)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("port_file")
    parser.add_argument("faults_file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=float, default=1.0, help="scales how often a request goes wrong; 0: never")
    options = parser.parse_args()
    server = Server(options)
    await asyncio.gather(server.outages(options), server.report(options))


if __name__ == "__main__":
    asyncio.run(main())
