#!/usr/bin/env python3
"""Compares `tlsfarm cache` with redis-server in one run and prints a Markdown table.

Usage: cache.py path/to/tlsfarm. Needs redis-server and redis-benchmark on the PATH. Everything runs on this machine and
ends by itself. CPU time is what the server's process used, from /proc; time on a busy machine says less.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time

VALUE_BYTES = 150
KEYS = 100_000
MEMORY_KEYS = 1_000_000
CLIENTS = 20
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A server on a Unix socket, until the block ends."""

    def __init__(self, name, arguments, path):
        self.name, self.path = name, path
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.command("PING")
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise SystemExit(f"{name} does not answer")
                time.sleep(0.05)

    def command(self, *words):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(self.path)
            request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            connection.sendall(request.encode())
            return connection.recv(4096)

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) * 1024

    def benchmark(self, requests, pipeline, words):
        """Runs one command; gives operations per second and CPU microseconds per operation."""
        before = self.cpu_seconds()
        arguments = ["redis-benchmark", "-s", self.path, "-c", str(CLIENTS), "-n", str(requests)]
        arguments += ["-r", str(MEMORY_KEYS), "-P", str(pipeline), "--csv", *words]
        output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
        rate = float(output.strip().splitlines()[-1].split(",")[1].strip('"'))
        return rate, (self.cpu_seconds() - before) * 1e6 / requests

    def fill(self, count):
        """Stores `count` different keys over one connection."""
        value = "x" * VALUE_BYTES
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.path)
            for start in range(0, count, 500):
                batch = []
                for number in range(start, start + 500):
                    key = f"key:{number:028d}"
                    batch.append(f"*5\r\n$3\r\nSET\r\n$32\r\n{key}\r\n${VALUE_BYTES}\r\n{value}\r\n$2\r\nEX\r\n$4\r\n3600\r\n")
                connection.sendall("".join(batch).encode())
                answered = 0
                while answered < 500 * len("+OK\r\n"):
                    answered += len(connection.recv(65536))

    def stop(self):
        self.process.terminate()
        self.process.wait()


def servers(binary, directory):
    def redis():
        path = f"{directory}/redis.sock"
        return Server("redis-server", ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory], path)

    def cache(encrypt):
        path = f"{directory}/cache-{encrypt}.sock"
        file = f"{directory}/cache-{encrypt}.yaml"
        with open(file, "w") as config:
            config.write(
                f"version: 1\nlisten: {{unix: {path}, admin: '127.0.0.1:0'}}\nsizeMiB: 4096\nencryptValues: {str(encrypt).lower()}\n"
            )
        name = "tlsfarm cache, values encrypted" if encrypt else "tlsfarm cache"
        return Server(name, [binary, "cache", "--config", file], path)

    return [redis, lambda: cache(False), lambda: cache(True)]


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    value = "x" * VALUE_BYTES
    commands = [
        ("SET", ["SET", "key:__rand_int__0000000000000000", value, "EX", "3600"]),
        ("GET", ["GET", "key:__rand_int__0000000000000000"]),
        ("GETDEL", ["GETDEL", "key:__rand_int__0000000000000000"]),
    ]
    rows, memory = [], []
    with tempfile.TemporaryDirectory() as directory:
        for start in servers(sys.argv[1], directory):
            server = start()
            try:
                for pipeline in (1, 16):
                    for name, words in commands:
                        rate, cpu = server.benchmark(KEYS * (1 if pipeline == 1 else 5), pipeline, words)
                        rows.append((server.name, name, pipeline, rate, cpu))
            finally:
                server.stop()
            server = start()
            try:
                before = server.resident_bytes()
                server.fill(MEMORY_KEYS)
                entry = (server.resident_bytes() - before) / MEMORY_KEYS
                memory.append((server.name, entry - 32 - VALUE_BYTES))
            finally:
                server.stop()
    print(f"{CLIENTS} clients on a Unix socket, values of {VALUE_BYTES} bytes:\n")
    print("| server | command | pipeline | operations/s | CPU µs/operation |\n|---|---|---|---|---|")
    for name, command, pipeline, rate, cpu in rows:
        print(f"| {name} | {command} | {pipeline} | {rate:,.0f} | {cpu:.2f} |")
    print(f"\nMemory at {MEMORY_KEYS:,} entries with keys of 32 bytes:\n")
    print("| server | bytes over the data, per entry |\n|---|---|")
    for name, overhead in memory:
        print(f"| {name} | {overhead:.0f} |")


if __name__ == "__main__":
    main()
