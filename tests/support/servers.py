"""Servers in processes of their own, and requests to them: `search.py serve`, and the page on `page_service.py`."""
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

from tiny import PROJECT, command

PAGE_SERVICE = [sys.executable, "tests/support/page_service.py"]


# ---------------------------------------------------------------- search.py serve

def start(folder, *options, **environment):
    """A process that serves an index."""
    return subprocess.Popen(command("search.py", "serve", folder, "--port", 0, *options), cwd=PROJECT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **environment})


def address_of(process):
    """The address that a server prints once it answers."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("serving "):
            break
    assert printed, "nothing was printed"
    assert " at http://" in printed[-1], "".join(printed)
    return printed[-1].rpartition("http://")[2].strip()


@contextlib.contextmanager
def served(folder, *options, **environment):
    """The address of a server of an index, which ends with the block, without an error."""
    process = start(folder, *options, **environment)
    try:
        yield address_of(process)
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[0]
        assert "Traceback" not in rest, rest
        assert process.returncode == 128 + signal.SIGTERM, rest


def post(address, path, body):
    """Status and answer."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://{address}/{path}", body, {"Content-Type": "application/json"})
    try:
        with direct.open(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def health(address):
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/health")
    return json.load(connection.getresponse())


# ---------------------------------------------------------------- the page on page_service.py

class Server:
    """A server in a process of its own."""

    def __init__(self, process, port):
        self.process, self.port = process, port
        self.stopping = False  # whether it was sent SIGTERM; a second one would end it at once

    def ask(self, method, path, body=None, **headers):
        """Status, headers, and the JSON or bytes of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            if isinstance(body, dict):
                body, named = json.dumps(body).encode(), {"Content-Type": "application/json", **named}
            connection.request(method, path, body, named)
            return read(connection.getresponse())

    def send(self, data):
        """A connection on which `data` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection

    def answer_to(self, data):
        """The same, and its answer."""
        with self.send(data) as connection:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return read(answer)

    def memory(self):
        """The most bytes that the process has held."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

    def processor_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as status:
            fields = status.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_well(self):
        return self.ask("GET", "/health")[2]["photos"] > 0


def read(answer):
    content = answer.read()
    is_json = answer.headers.get("Content-Type") == "application/json"
    return answer.status, answer.headers, json.loads(content) if is_json and content else content


@contextlib.contextmanager
def page_served(folder, *options, files=None):
    """The Server of an index, which ends with the block, without an error. files: how many it may open."""
    def limit_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    process = subprocess.Popen([*PAGE_SERVICE, str(folder), *options], cwd=PROJECT, text=True,
                               env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, preexec_fn=limit_files if files else None)
    line = process.stdout.readline()
    assert line.startswith("serving at"), line + process.communicate()[0]
    server = Server(process, int(line.rpartition(":")[2]))
    try:
        yield server
    finally:
        if not server.stopping:
            process.terminate()
        rest = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGTERM, rest
    assert "Traceback" not in rest, rest
