// The web server of the images that critest calls nginx and httpd: answers every request with a page.
// argv: the title it shows in ps, the port, the pid file ("" for none). Says its name at each start.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char* what) {
  perror(what);
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: webserver TITLE PORT PIDFILE\n");
    return 2;
  }
  // As the first process of its namespace, it gets no signal that it does not handle.
  signal(SIGTERM, _exit);
  signal(SIGQUIT, _exit);
  signal(SIGPIPE, SIG_IGN);
  char name[16] = "";
  sscanf(argv[1], "%15[a-z]", name);
  prctl(PR_SET_NAME, name);

  int listener = socket(AF_INET6, SOCK_STREAM, 0);
  int on = 1, off = 0;
  struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(argv[2])), .sin6_addr = in6addr_any};
  if (listener < 0) return fail("socket");
  if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) || setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off))
    return fail("setsockopt");
  if (bind(listener, (struct sockaddr*)&address, sizeof address) || listen(listener, 64)) return fail("listen");
  if (argv[3][0]) {
    FILE* file = fopen(argv[3], "w");
    if (!file) return fail(argv[3]);
    fprintf(file, "%d\n", getpid());
    fclose(file);
  }
  printf("%s: listening on port %s\n", argv[1], argv[2]);
  fflush(stdout);

  static const char page[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\nConnection: close\r\n\r\nWelcome\n";
  for (;;) {
    int client = accept(listener, NULL, NULL);
    if (client < 0) return fail("accept");
    char request[4096];
    size_t length = 0;
    while (length < sizeof request - 1) {
      ssize_t got = read(client, request + length, sizeof request - 1 - length);
      if (got <= 0) break;
      length += (size_t)got;
      request[length] = 0;
      if (strstr(request, "\r\n\r\n")) break;
    }
    if (length > 0 && write(client, page, sizeof page - 1) < 0) perror("write");
    close(client);
  }
}
