#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string_view>

#include "magnetar/unique_fd.h"

// Bytes of a unix socket and a descriptor that travels with them (SCM_RIGHTS). Both are like
// send(2) and recv(2): a count or -1 with errno, never SIGPIPE, and no waiting where the socket is
// non-blocking; interrupted ones are begun again.
namespace magnetar {

// The descriptor travels with the first byte; none if it is negative. It stays the caller's, too.
ssize_t SendWithDescriptor(int socket, std::string_view data, int fd);

// Puts a descriptor that came with the bytes into `fd`, close-on-exec. They end with those that it
// was sent with, or with as many of them as there was room for. More than one, or one for which
// there was no room: -1, EMFILE.
ssize_t ReceiveWithDescriptor(int socket, void* buffer, size_t size, UniqueFd& fd);

// Whether it is a unix socket: no other carries descriptors.
bool CarriesDescriptors(int socket);

}  // namespace magnetar
