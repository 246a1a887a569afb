"""Calls of containerd's Task API straight to a pod's guest: what containerd itself would never send."""

import json
import socket
import struct

from . import protos

PORT = 1024
SERVICE = "containerd.task.v3.Task"
REQUEST, RESPONSE = 1, 2
# Of ttrpc: length of the body, stream, type, flags.
HEADER = struct.Struct(">IIBB")
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/"
# gRPC's names of codes.
CODES = ("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
         "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
         "UNAUTHENTICATED")


class TaskError(Exception):
    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class TaskApi:
    """One connection, one call at a time. A call that is not answered in time is an OSError."""

    def __init__(self, pod, timeout=30):
        self.messages, self._ttrpc, self._wkt = protos.load("containerd/task", "wire/ttrpc", "wire/wkt")
        self._stream = -1
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(pod.stack.sandbox_record(pod) / "vm.vsock"))
        self._socket.sendall(b"CONNECT %d\n" % PORT)
        greeting = b""
        while not greeting.endswith(b"\n"):
            greeting += self._take(1)
        assert greeting.startswith(b"OK "), greeting

    def _take(self, size):
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the guest closed the connection")
            data += more
        return data

    def send_bytes(self, data):
        self._socket.sendall(data)

    def send(self, method, payload, service=SERVICE):
        """Begins a call with a request of any bytes."""
        self._stream += 2
        body = self._ttrpc.Request(service=service.encode(), method=method.encode(), payload=payload).SerializeToString()
        self.send_bytes(HEADER.pack(len(body), self._stream, REQUEST, 0) + body)

    def receive(self):
        """The payload of the answer to what was sent last."""
        while True:
            length, stream, kind, _ = HEADER.unpack(self._take(HEADER.size))
            body = self._take(length)
            if (stream, kind) == (self._stream, RESPONSE):
                break
        answer = self._ttrpc.Response.FromString(body)
        if answer.status.code:
            raise TaskError(CODES[answer.status.code], answer.status.message.decode())
        return answer.payload

    def raw(self, method, payload, service=SERVICE):
        self.send(method, payload, service)
        return self.receive()

    def request(self, method, **fields):
        name = {"Create": "CreateTask", "Exec": "ExecProcess", "Update": "UpdateTask", "Checkpoint": "CheckpointTask"}.get(method, method)
        return getattr(self.messages, f"{name}Request")(**fields)

    def call(self, method, **fields):
        """The response, or the empty payload of a call that answers nothing; raises TaskError."""
        payload = self.raw(method, self.request(method, **fields).SerializeToString())
        response = getattr(self.messages, f"{'CreateTask' if method == 'Create' else method}Response", None)
        return response.FromString(payload) if response else payload

    def error(self, method, **fields):
        """The error of a call that must fail."""
        try:
            response = self.call(method, **fields)
        except TaskError as error:
            return error
        raise AssertionError(f"{method}({fields}) succeeded: {response}")

    def spec(self, kind, value):
        """An Any of the runtime spec: JSON of a value, or bytes as they are."""
        return self._wkt.Any(type_url=SPEC + kind, value=value if isinstance(value, bytes) else json.dumps(value).encode())

    def settimeout(self, seconds):
        self._socket.settimeout(seconds)

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
