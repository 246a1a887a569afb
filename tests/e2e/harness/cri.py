"""Calls of containerd's CRI service itself: what crictl's command line is too slow or too coarse for."""

import grpc

from . import protos

IMAGE_METHODS = ("ListImages", "ImageFsInfo")
# The kubelet's time-out of a call (--runtime-request-timeout), in seconds.
DEADLINE = 120


class Cri:
    """Threads may share one."""

    def __init__(self, socket):
        (self.messages,) = protos.load("cri/service")
        self._channel = grpc.insecure_channel(f"unix://{socket}", [("grpc.max_receive_message_length", 16 << 20)])

    def _rpc(self, kind, method, request, response):
        service = "ImageService" if method in IMAGE_METHODS else "RuntimeService"
        return getattr(self._channel, kind)(f"/runtime.v1.{service}/{method}", request_serializer=request.SerializeToString,
                                            response_deserializer=response.FromString)

    def future(self, method, deadline=DEADLINE, **fields):
        """The call, under way."""
        request, response = getattr(self.messages, f"{method}Request"), getattr(self.messages, f"{method}Response")
        return self._rpc("unary_unary", method, request, response).future(request(**fields), timeout=deadline)

    def call(self, method, deadline=DEADLINE, **fields):
        """The response; raises grpc.RpcError."""
        return self.future(method, deadline, **fields).result()

    def events(self):
        """The stream of container events, which begins with what happens from now on."""
        request, response = self.messages.GetEventsRequest, self.messages.ContainerEventResponse
        return self._rpc("unary_stream", "GetContainerEvents", request, response)(request())

    def close(self):
        self._channel.close()
