// Run in a container: sends every datagram that comes to the UDP port argv[1] back to its sender.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int fd = socket(AF_INET6, SOCK_DGRAM, 0);
  struct sockaddr_in6 address;
  memset(&address, 0, sizeof address);
  address.sin6_family = AF_INET6;
  address.sin6_port = htons((unsigned short)atoi(argv[1]));
  if (fd < 0 || bind(fd, (const struct sockaddr*)&address, sizeof address) != 0) {
    perror("udp_echo");
    return 1;
  }
  puts("listens");
  fflush(stdout);
  while (1) {
    char data[65536];
    socklen_t size = sizeof address;
    const ssize_t n = recvfrom(fd, data, sizeof data, 0, (struct sockaddr*)&address, &size);
    if (n < 0 || sendto(fd, data, (size_t)n, 0, (const struct sockaddr*)&address, size) != n) {
      perror("udp_echo");
    }
  }
}
