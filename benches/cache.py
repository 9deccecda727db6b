#!/usr/bin/env python3
"""Measures `tlsfarm cache` beside Debian's redis-server, both in the same minutes on the same machine.

    benches/cache.py TLSFARM_BINARY

prints Markdown: operations, CPU time, memory, and what it costs that the owner of a key is another cache. The load is
redis-benchmark, for handshakes `tlsfarm probe`; CPU time and memory are the kernel's figures for the process. Needs
redis-server, redis-benchmark, redis-cli and openssl; takes about eight minutes."""

import atexit
import base64
import csv
import datetime
import hashlib
import io
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VALUE = 150  # bytes: a sealed TLS session
KEYS = 1_000_000  # loaded before keys are drawn from them
ROUNDS = 3  # of each measurement, the servers taking turns; the median counts
REQUESTS = {1: 300_000, 16: 1_000_000}  # by pipeline, so that each takes a few seconds
CLIENTS = 50
KEY = "key:__rand_int__"  # redis-benchmark puts twelve digits in its place
COMMANDS = {
    "GET": ["GET", KEY],
    "SET": ["SET", KEY, "x" * VALUE, "EX", "3600"],
    "GETDEL": ["GETDEL", KEY],
}
TICK = os.sysconf("SC_CLK_TCK")
SERVER_NAME = "cache.bench.web.tlsfarm"
HOST = "bench.example.com"
HANDSHAKES = 200  # rounds of the probe


class Server:
    """A running server and the Unix socket that it is asked through."""

    def __init__(self, name, arguments, unix, admin=None):
        self.name, self.unix, self.admin = name, unix, admin
        self.process = start(arguments)
        deadline = time.monotonic() + 20
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{name} does not start: {' '.join(map(str, arguments))}")
            time.sleep(0.05)

    def is_ready(self):
        try:
            return self.page("/readyz") is not None if self.admin else self.cli("PING") == "PONG"
        except (OSError, subprocess.CalledProcessError):
            return False

    def page(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name):
        lines = (line.rpartition(" ") for line in self.page("/metrics").splitlines())
        return next((float(value) for series, _, value in lines if series == f"tlsfarm_cache_{name}"), 0)

    def entries(self):
        return self.metric("entries") if self.admin else int(self.cli("DBSIZE"))

    def cli(self, *command):
        return run("redis-cli", "-s", self.unix, *command).strip()

    def load(self, entries):
        """Stores `entries`, (key, value) by (key, value)."""
        pipe = subprocess.Popen(["redis-cli", "-s", self.unix, "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for key, value in entries:
            words = [b"SET", key, value, b"EX", b"3600"]
            pipe.stdin.write(b"*5\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        pipe.stdin.close()
        said = pipe.stdout.read().decode()
        if pipe.wait() != 0 or "errors: 0" not in said:
            sys.exit(f"{self.name} did not take everything: {said}")

    def benchmark(self, command, requests, pipeline, clients):
        """One run of redis-benchmark; its last line of figures, by their names."""
        sized = ["-n", requests, "-P", pipeline, "-c", clients, "-r", KEYS, "--csv"]
        table = csv.DictReader(io.StringIO(run("redis-benchmark", "-s", self.unix, *sized, *command)))
        return {name: float(value) for name, value in list(table)[-1].items() if name != "test"}

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK  # utime and stime

    def resident(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def stop(self):
        self.process.terminate()
        self.process.wait()


def start(arguments):
    """Starts a process that ends with this one, whatever happens."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.kill)
    return process


def run(*command):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    binary = Path(sys.argv[1]).resolve()
    for needed in ["redis-server", "redis-benchmark", "redis-cli", "openssl"]:
        if not shutil.which(needed):
            sys.exit(f"{needed} is missing: tests/packages installs it")
    with tempfile.TemporaryDirectory(prefix="tlsfarm-bench-") as scratch:
        scratch = Path(scratch)
        starts = {
            "redis-server": lambda: start_redis(scratch),
            "tlsfarm": lambda: start_cache(binary, scratch, "plain", encryptValues=False),
            "tlsfarm, values encrypted": lambda: start_cache(binary, scratch, "encrypted", encryptValues=True),
        }
        print_machine(binary)
        operations(starts)
        memory(starts)
        make_certificates(scratch)
        caches = start_peers(binary, scratch)
        latency(caches)
        handshakes(binary, scratch, *caches)


def start_redis(scratch):
    unix = scratch / "redis.sock"
    keep_nothing = ["--save", "", "--appendonly", "no", "--port", "0", "--dir", scratch]
    return Server("redis-server", ["redis-server", "--unixsocket", unix, *keep_nothing], unix)


def start_cache(binary, scratch, name, **more):
    unix, admin = scratch / f"{name}.sock", free_port()
    config = scratch / f"{name}.json"
    listen = {"unix": str(unix), "admin": f"127.0.0.1:{admin}"}
    config.write_text(json.dumps({"version": 1, "listen": listen, "sizeMiB": 2048, **more}))
    return Server(f"tlsfarm ({name})", [binary, "cache", "--config", config], unix, admin)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def print_machine(binary):
    model = next((line.partition(": ")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    load = os.getloadavg()[0]
    redis = run("redis-server", "--version").split()[2].removeprefix("v=")
    print(f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, load before {load:.2f};", end=" ")
    print(f"redis-server {redis}, {run(binary, '--version').strip()}.")


def operations(starts):
    servers = {name: begin() for name, begin in starts.items()}
    results = {}
    for server in servers.values():
        server.load(benchmark_entries())
    for _ in range(ROUNDS):
        for command, words in COMMANDS.items():
            for pipeline, requests in REQUESTS.items():
                for name, server in servers.items():
                    before = server.cpu_seconds()
                    rate = server.benchmark(words, requests, pipeline, CLIENTS)["rps"]
                    cpu = (server.cpu_seconds() - before) / requests
                    results.setdefault((command, pipeline), {}).setdefault(name, []).append((rate, cpu))
                    if command == "GETDEL":
                        server.load(benchmark_entries())
    for server in servers.values():
        server.stop()
    print(f"\nValues of {VALUE} bytes over a Unix socket, {CLIENTS} connections, keys drawn from {KEYS:,}; median of {ROUNDS} rounds.\n")
    print(row("", *(f"{name}: ops/s | CPU µs/op" for name in starts)))
    print("|---" + "|---:" * (2 * len(starts)) + "|")
    for (command, pipeline), by_name in results.items():
        cells = []
        for name in starts:
            rate, cpu = (statistics.median(column) for column in zip(*by_name[name]))
            cells += [f"{rate:,.0f}", f"{cpu * 1e6:.1f}"]
        print(row(f"{command}, pipeline {pipeline}", *cells))


def benchmark_entries():
    value = b"x" * VALUE
    return ((b"key:%012d" % number, value) for number in range(KEYS))


def memory(starts):
    print(f"\nMemory at {KEYS:,} entries with keys of 32 bytes.\n")
    print(row("", "resident bytes per entry", "of these beyond key and value"))
    print("|---|---:|---:|")
    for name, begin in starts.items():
        server = begin()
        before = server.resident()
        server.load((hashlib.sha256(b"%d" % number).digest(), os.urandom(VALUE)) for number in range(KEYS))
        each = (server.resident() - before) / KEYS
        if server.entries() != KEYS:
            sys.exit(f"{name} keeps {server.entries()} entries of {KEYS}")
        server.stop()
        print(row(name, f"{each:.0f}", f"{each - 32 - VALUE:.0f}"))


def start_peers(binary, scratch):
    """Two caches, of which the first owns nothing: what it is asked for it gets from the second."""
    owner_port = free_port()
    files = {"certificate": "leaf.crt", "key": "leaf.key", "authority": "ca.crt"}
    peers = {name: str(scratch / file) for name, file in files.items()}
    peers |= {"members": {"addresses": [f"127.0.0.1:{owner_port}"]}, "serverName": SERVER_NAME}
    peers |= {"timeout": "1s"}  # so that the slowest answers are measured, not cut off
    asked, owner = (
        start_cache(binary, scratch, name, peers={**peers, "listen": f"127.0.0.1:{port}"})
        for name, port in [("asked", free_port()), ("owner", owner_port)]
    )
    deadline = time.monotonic() + 20
    while asked.metric("peer_reachable") != 1:
        if time.monotonic() > deadline:
            sys.exit("the caches do not reach each other")
        time.sleep(0.05)
    return asked, owner


def latency(caches):
    asked, owner = caches
    asked.cli("SET", "key", "x" * VALUE, "EX", "3600")
    if owner.metric("entries") != 1:
        sys.exit("the key is not where it belongs")
    print("\nOne GET at a time, on loopback.\n")
    print(row("owner of the key", "p50 ms", "p99 ms"))
    print("|---|---:|---:|")
    for cache, where in [(owner, "the cache that is asked"), (asked, "another, over mTLS")]:
        runs = [cache.benchmark(["GET", "key"], 20_000, 1, 1) for _ in range(ROUNDS)]
        p50, p99 = (statistics.median(each[f"p{part}_latency_ms"] for each in runs) for part in [50, 99])
        print(row(where, f"{p50:.3f}", f"{p99:.3f}"))


def handshakes(binary, scratch, asked, owner):
    """Mean times of TLS 1.2 handshakes, as the probe sees them."""
    put_ring(scratch / "ring.json")
    backend = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    print(f"\nTLS 1.2 handshakes on loopback with ECDSA P-256, mean of {HANDSHAKES}, one at a time.\n")
    print(row("resumed by", "full ms", "resumed ms"))
    print("|---|---:|---:|")
    for cache, mechanism, what in [
        (owner, "tls12-ticket", "ticket"),
        (owner, "tls12-session-id", "session id, its owner the cache beside the proxy"),
        (asked, "tls12-session-id", "session id, its owner another cache, over mTLS"),
    ]:
        address, proxy = start_proxy(binary, scratch, cache, backend.server_port)
        where = ["--address", address, "--server-name", HOST, "--mechanism", mechanism]
        rounds = ["--watch", "--interval", "0", "--count", HANDSHAKES, "--output", "json"]
        summary = json.loads(run(binary, "probe", *where, *rounds).splitlines()[-1])
        full, resumed = (summary[f"{kind}HandshakeSeconds"] * 1e3 for kind in ["full", "resumed"])
        print(row(what, f"{full:.3f}", f"{resumed:.3f}"))
        proxy.terminate()
        proxy.wait()
    for server in [asked, owner]:
        server.stop()


class Page(BaseHTTPRequestHandler):
    """The page behind the proxy."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def start_proxy(binary, scratch, cache, backend_port):
    https, admin = free_port(), free_port()
    host = {"name": "bench", "hostnames": [HOST], "minVersion": "TLS12"}
    host["certificates"] = [{"name": "bench", "certificate": str(scratch / "leaf.crt"), "key": str(scratch / "leaf.key")}]
    host["routes"] = [{"path": "/", "backend": {"addresses": [f"127.0.0.1:{backend_port}"]}}]
    config = {
        "version": 1,
        "farm": "web/bench",
        "listen": {"https": f"127.0.0.1:{https}", "admin": f"127.0.0.1:{admin}"},
        "ring": str(scratch / "ring.json"),
        "tickets": {"lifetime": "4h", "maxAge": "24h", "tls12Lifetime": "2h"},
        "sessionCache": {"server": {"unix": str(cache.unix)}, "sessionIdLifetime": "2h", "lookupTimeout": "50ms"},
        "drainPeriod": "1s",
        "hosts": [host],
    }
    file = scratch / "proxy.json"
    file.write_text(json.dumps(config))
    proxy = start([binary, "proxy", "--config", file])
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5)
            return f"127.0.0.1:{https}", proxy
        except OSError:
            if proxy.poll() is not None or time.monotonic() > deadline:
                sys.exit("the proxy does not start")
            time.sleep(0.05)


def put_ring(file):
    """A ring of two keys that are good for a day."""
    now = datetime.datetime.now(datetime.timezone.utc)
    time_in = lambda hours: (now + datetime.timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
    times = {"createdAt": time_in(0), "sealUntil": time_in(24), "openUntil": time_in(24)}
    next_key, primary = (
        {"id": os.urandom(16).hex(), "secret": base64.b64encode(os.urandom(32)).decode(), **times} for _ in range(2)
    )
    ring = {"version": 1, "generation": 1, "changedAt": time_in(0), "rotatedAt": time_in(0)}
    file.write_text(json.dumps({**ring, "next": next_key, "primary": primary, "previous": []}))


def make_certificates(scratch):
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    ca, leaf = scratch / "ca", scratch / "leaf"
    run("openssl", "req", "-x509", *new_key, "-keyout", f"{ca}.key", "-out", f"{ca}.crt", "-subj", "/CN=bench")
    signed = ["-CA", f"{ca}.crt", "-CAkey", f"{ca}.key"]
    names = ["-subj", "/CN=leaf", "-addext", f"subjectAltName=DNS:{SERVER_NAME},DNS:{HOST}", "-addext", "basicConstraints=CA:FALSE"]
    run("openssl", "req", "-x509", *new_key, *signed, "-keyout", f"{leaf}.key", "-out", f"{leaf}.crt", *names)


def row(*cells):
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
