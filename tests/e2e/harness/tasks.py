"""Calls of containerd's own Tasks service, which hands each on to the guest: what ctr and Docker call."""

import json

import grpc

from . import protos

SERVICE = "/containerd.services.tasks.v1.Tasks/"
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/"
# Methods whose request is not called like them; and all whose answer is looked at.
REQUESTS = {"Delete": "DeleteTask", "Exec": "ExecProcess", "Pause": "PauseTask", "Resume": "ResumeTask", "Checkpoint": "CheckpointTask",
            "Update": "UpdateTask"}
RESPONSES = {"Start": "Start", "Delete": "Delete", "DeleteProcess": "Delete", "Metrics": "Metrics", "Wait": "Wait",
             "ListPids": "ListPids"}


class Tasks:
    """Threads may share one."""

    def __init__(self, socket):
        self.messages, self._wkt = protos.load("containerd/tasks", "wire/wkt")
        self._channel = grpc.insecure_channel(f"unix://{socket}")

    def future(self, method, timeout=120, **fields):
        """The call, under way."""
        request = getattr(self.messages, f"{REQUESTS.get(method, method)}Request")(**fields)
        response = getattr(self.messages, f"{RESPONSES[method]}Response") if method in RESPONSES else self._wkt.Empty
        rpc = self._channel.unary_unary(SERVICE + method, request_serializer=lambda message: message.SerializeToString(),
                                        response_deserializer=response.FromString)
        return rpc.future(request, timeout=timeout, metadata=(("containerd-namespace", "k8s.io"),))

    def call(self, method, timeout=120, **fields):
        """The response; raises grpc.RpcError."""
        return self.future(method, timeout, **fields).result()

    def arrived(self):
        """Returns when containerd has all calls that were begun before, since they share a connection."""
        rpc = self._channel.unary_unary("/containerd.services.version.v1.Version/Version")
        rpc(b"", timeout=60)

    def spec(self, kind, value):
        """An Any of the runtime spec."""
        return self._wkt.Any(type_url=SPEC + kind, value=json.dumps(value).encode())

    def close(self):
        self._channel.close()
