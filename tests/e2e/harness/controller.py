"""Calls of the sandbox Controller, past containerd: what no well-behaved client would send."""

import fcntl
import importlib
import pathlib
import subprocess
import sys

import grpc

from . import ROOT, settings

FILES = ("wire/wkt", "containerd/types", "containerd/sandbox")
SERVICE = "/containerd.services.sandbox.v1.Controller/"


def _generated():
    """The folder of the Python code of our protos."""
    out = settings.CACHE / "e2e-protos"
    out.mkdir(parents=True, exist_ok=True)
    sources = [ROOT / "proto" / f"{name}.proto" for name in FILES]
    stamp = out / "stamp"
    newest = max(path.stat().st_mtime for path in sources)
    with open(out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.stat().st_mtime < newest:
            subprocess.run(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}", *map(str, sources)], check=True)
            stamp.touch()
    return out


def _load():
    sys.path.insert(0, str(_generated()))
    return tuple(importlib.import_module(f"{name.replace('/', '.')}_pb2") for name in FILES)


class Controller:
    def __init__(self, socket):
        self.wkt, self.types, self.messages = _load()
        self.channel = grpc.insecure_channel(f"unix://{pathlib.Path(socket)}")

    def call(self, method, timeout=60, **fields):
        """The response; raises grpc.RpcError."""
        return self.future(method, timeout, **fields).result()

    def future(self, method, timeout=60, **fields):
        """The call, under way."""
        request = getattr(self.messages, f"Controller{method}Request")(**fields)
        response = getattr(self.messages, f"Controller{method}Response")
        rpc = self.channel.unary_unary(SERVICE + method, request_serializer=lambda message: message.SerializeToString(),
                                       response_deserializer=response.FromString)
        return rpc.future(request, timeout=timeout, metadata=(("containerd-namespace", "k8s.io"),))

    def code(self, method, **fields):
        """The status code and message of a call that must fail."""
        try:
            response = self.call(method, **fields)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError(f"{method}({fields}) succeeded: {response}")

    def any(self, type_url, value):
        return self.wkt.Any(type_url=type_url, value=value)

    def close(self):
        self.channel.close()
