// Run in a container: dials vsock ports of the host, the guest itself and the other fixed CIDs.
// Exits with 0 if nothing answers and nobody connects.
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static int answered = 0;

static void Dial(int type, unsigned cid, unsigned port) {
  const int fd = socket(AF_VSOCK, type | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const struct timeval limit = {.tv_sec = 0, .tv_usec = 200000};
  setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof limit);
  struct sockaddr_vm address;
  memset(&address, 0, sizeof address);
  address.svm_family = AF_VSOCK;
  address.svm_cid = cid;
  address.svm_port = port;
  if (connect(fd, (const struct sockaddr*)&address, sizeof address) == 0) {
    // A peer that refuses strangers may do so only after the handshake: then there is nothing to
    // read.
    char byte;
    const struct timeval patience = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    send(fd, "CONNECT 1024\n", 13, MSG_NOSIGNAL);
    const ssize_t got = recv(fd, &byte, 1, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
      printf("%u:%u hung up\n", cid, port);
    } else {
      printf("%u:%u answers\n", cid, port);
      answered = 1;
    }
  }
  close(fd);
}

int main(void) {
  const int probe = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (probe < 0) {
    printf("no vsock sockets: %s\nnothing answers\n", strerror(errno));
    return 0;
  }
  close(probe);
  unsigned own = VMADDR_CID_ANY;
  const int device = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
  if (device >= 0) ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &own);
  // A guest's CID is the first free one from 3 on.
  const unsigned cids[] = {0, VMADDR_CID_LOCAL, VMADDR_CID_HOST, 3, 4, 5, own, VMADDR_CID_ANY};
  const int types[] = {SOCK_STREAM, SOCK_SEQPACKET};
  for (unsigned i = 0; i < sizeof cids / sizeof *cids; ++i) {
    for (unsigned t = 0; t < 2; ++t) {
      for (unsigned port = 1000; port < 1100; ++port) Dial(types[t], cids[i], port);
      for (unsigned port = 1; port < 65536; port = port * 2 + 1) Dial(types[t], cids[i], port);
    }
  }
  if (answered) return 1;
  printf("nothing answers\n");
  return 0;
}
