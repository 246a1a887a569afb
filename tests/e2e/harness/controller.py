"""Calls of the sandbox Controller, past containerd: what no well-behaved client would send."""

import pathlib

import grpc

from . import protos

SERVICE = "/containerd.services.sandbox.v1.Controller/"


class Controller:
    def __init__(self, socket):
        self.wkt, self.messages = protos.load("wire/wkt", "containerd/sandbox")
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
