"""The OCI spec of a container that has not been started, for what no field of CRI says and a client of containerd's may."""

import json

import grpc

from . import protos

SERVICE = "/containerd.services.containers.v1.Containers/"


def change(socket, container_id, edit):
    """Has `edit` change the spec, a dictionary."""
    containers, update = protos.load("containerd/containers", "containerd/container_update")
    with grpc.insecure_channel(f"unix://{socket}") as channel:

        def call(method, request, response):
            rpc = channel.unary_unary(SERVICE + method, request_serializer=lambda message: message.SerializeToString(),
                                      response_deserializer=response.FromString)
            return rpc(request, timeout=60, metadata=(("containerd-namespace", "k8s.io"),)).container

        container = call("Get", containers.GetContainerRequest(id=container_id), containers.GetContainerResponse)
        spec = json.loads(container.spec.value)
        edit(spec)
        container.spec.value = json.dumps(spec).encode()
        changed = update.UpdateContainerRequest(container=container, update_mask=update.FieldMask(paths=["spec"]))
        call("Update", changed, update.UpdateContainerResponse)
