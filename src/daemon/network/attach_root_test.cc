// Attach and Detach on real namespaces. The "guest" is a third namespace with a tap of its own, and
// a thread that carries frames between the two taps as a VMM would, so that a real network stack
// answers with what the daemon says the guest shall configure.

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <linux/netfilter_ipv4.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/network/netns.h"
#include "src/daemon/network/pod_network.h"
#include "src/daemon/network/testing/test_netns.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

constexpr int kIp6OriginalDst = 80;  // IP6T_SO_ORIGINAL_DST

struct Address {
  sockaddr_storage storage = {};
  socklen_t size = 0;
  int family() const { return storage.ss_family; }
};

Address At(const std::string& ip, uint16_t port) {
  Address address;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
  if (::inet_pton(AF_INET, ip.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    address.size = sizeof(*v4);
  } else {
    EXPECT_EQ(::inet_pton(AF_INET6, ip.c_str(), &v6->sin6_addr), 1) << ip;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    address.size = sizeof(*v6);
  }
  return address;
}

UniqueFd ListenAt(const Netns& netns, const std::string& ip, uint16_t port) {
  const Address address = At(ip, port);
  UniqueFd fd = netns.Socket(address.family());
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.size) != 0 ||
      ::listen(fd.get(), 8) != 0) {
    ADD_FAILURE() << "listen at " << ip << ": " << std::strerror(errno);
  }
  return fd;
}

// Fails after five seconds instead of hanging the test.
UniqueFd Dial(const Netns& netns, const std::string& ip, uint16_t port) {
  const Address address = At(ip, port);
  UniqueFd fd = netns.Socket(address.family());
  const timeval limit = {.tv_sec = 5, .tv_usec = 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.size) != 0) {
    return UniqueFd();
  }
  return fd;
}

UniqueFd AcceptSoon(int listener) {
  pollfd p = {.fd = listener, .events = POLLIN, .revents = 0};
  if (::poll(&p, 1, 5000) != 1) return UniqueFd();
  return UniqueFd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
}

// The guest: a namespace whose tap is wired to the pod's by a thread.
class Guest {
 public:
  Guest(int pod_tap, const agent::v1::Network& network) : pod_tap_(pod_tap) {
    const agent::v1::Interface& interface = network.interfaces(0);
    auto fd = RunInNetns(netns_.fd(), [&interface]() -> absl::StatusOr<int> {
      const int tap = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
      ifreq request = {};
      std::strncpy(request.ifr_name, interface.name().c_str(), IFNAMSIZ - 1);
      request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
      if (::ioctl(tap, TUNSETIFF, &request) != 0) return absl::InternalError("TUNSETIFF");
      ::ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
      return tap;
    });
    EXPECT_TRUE(fd.ok()) << fd.status();
    tap_.reset(fd.ok() ? *fd : -1);
    stop_.reset(::eventfd(0, EFD_CLOEXEC));
    Configure(network);
    thread_ = std::thread([this] { Carry(); });
  }
  ~Guest() {
    const uint64_t one = 1;
    EXPECT_EQ(::write(stop_.get(), &one, sizeof(one)), 8);
    thread_.join();
  }
  const Netns& netns() const { return netns_; }

 private:
  void Configure(const agent::v1::Network& network) {
    netns_.Run("ip link set lo up; sysctl -qw net.ipv6.conf.all.accept_ra=0");
    for (const auto& i : network.interfaces()) {
      netns_.Run(absl::StrCat("ip link set ", i.name(), " address ", i.mac(), " mtu ", i.mtu()));
      for (const auto& address : i.addresses()) {
        netns_.Run(absl::StrCat("ip addr add ", address, " dev ", i.name(),
                                address.find(':') == std::string::npos ? "" : " nodad"));
      }
      netns_.Run(absl::StrCat("ip link set ", i.name(), " up"));
    }
    for (const auto& r : network.routes()) {
      netns_.Run(absl::StrCat("ip route add ", r.destination(), " dev ", r.device(),
                              r.gateway().empty() ? "" : " via ", r.gateway(),
                              r.onlink() ? " onlink" : ""));
    }
    for (const auto& n : network.neighbours()) {
      netns_.Run(
          absl::StrCat("ip neigh replace ", n.address(), " lladdr ", n.mac(), " dev ", n.device()));
    }
  }

  void Carry() {
    std::vector<char> frame(70000);
    pollfd p[3] = {{.fd = stop_.get(), .events = POLLIN, .revents = 0},
                   {.fd = pod_tap_, .events = POLLIN, .revents = 0},
                   {.fd = tap_.get(), .events = POLLIN, .revents = 0}};
    while (true) {
      if (::poll(p, 3, -1) < 0 || p[0].revents != 0) return;
      for (int i : {1, 2}) {
        if ((p[i].revents & POLLIN) == 0) continue;
        const ssize_t n = ::read(p[i].fd, frame.data(), frame.size());
        // A tap drops what it cannot take, as a wire would.
        if (n > 0 && ::write(p[3 - i].fd, frame.data(), static_cast<size_t>(n)) < 0) continue;
      }
    }
  }

  Netns netns_;
  int pod_tap_;
  UniqueFd tap_;
  UniqueFd stop_;
  std::thread thread_;
};

class AttachRootTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    if (!pod_.ok() || !node_.ok()) GTEST_SKIP() << "no network namespaces here";
    manager_ = CreateNetworkManager();
  }

  // eth0 in the pod, its peer in `node_`, dual stack, default routes, MTU 1400.
  void MakePod() {
    pod_.Run("ip link set lo up");
    pod_.Run(absl::StrCat("ip link add eth0 mtu 1400 type veth peer name pod0 mtu 1400 netns ",
                          node_.path()));
    node_.Run(
        "ip link set lo up; ip link set pod0 up; ip addr add 10.66.0.1/24 dev pod0; "
        "ip addr add fd66::1/64 dev pod0 nodad");
    pod_.Run(
        "ip link set eth0 up; ip addr add 10.66.0.2/24 dev eth0; "
        "ip addr add fd66::2/64 dev eth0 nodad; ip route add default via 10.66.0.1; "
        "ip -6 route add default via fd66::1");
  }

  // Everything that Attach may change. The kernel's link-local addresses come in their own time.
  std::string State() {
    return pod_.Run(
        "ip -o link | sed 's/ state.*//'; tc qdisc; tc filter show dev lo ingress; "
        "nft list ruleset; (ip addr | grep inet; ip route; ip -6 route) | grep -v fe80 | sort");
  }

  Netns pod_;
  Netns node_;
  std::unique_ptr<NetworkManager> manager_;
};

void ExpectBulk(int from, int to, size_t size) {
  std::thread writer([from, size] {
    std::vector<char> block(65536);
    for (size_t sent = 0; sent < size;) {
      for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<char>((sent + i) * 31 >> 3);
      if (::send(from, block.data(), block.size(), MSG_NOSIGNAL) !=
          static_cast<ssize_t>(block.size())) {
        break;
      }
      sent += block.size();
    }
    ::shutdown(from, SHUT_WR);
  });
  size_t received = 0;
  bool equal = true;
  std::vector<char> block(65536);
  ssize_t n;
  while ((n = ::recv(to, block.data(), block.size(), 0)) > 0) {
    for (ssize_t i = 0; i < n; ++i) {
      equal &= block[i] == static_cast<char>((received + i) * 31 >> 3);
    }
    received += static_cast<size_t>(n);
  }
  writer.join();
  EXPECT_EQ(received, size);
  EXPECT_TRUE(equal);
}

TEST_F(AttachRootTest, GuestAnswersInThePodsPlaceOverBothFamilies) {
  MakePod();
  const std::string before = State();
  auto network = manager_->Attach(pod_.path(), 12345);
  ASSERT_TRUE(network.ok()) << network.status();
  ASSERT_EQ(network->taps.size(), 1u);
  EXPECT_EQ(network->taps[0].interface, "eth0");
  EXPECT_EQ(network->taps[0].mtu, 1400u);
  EXPECT_THAT(pod_.Run("ip addr show eth0"), HasSubstr("10.66.0.2/24"));
  EXPECT_THAT(pod_.Run("ip -d link show type tun"), HasSubstr("user 12345"));
  {
    Guest guest(network->taps[0].fd.get(), network->guest);
    for (const auto& [pod_ip, node_ip] :
         {std::pair("10.66.0.2", "10.66.0.1"), std::pair("fd66::2", "fd66::1")}) {
      UniqueFd inside = ListenAt(guest.netns(), pod_ip, 8080);
      UniqueFd client = Dial(node_, pod_ip, 8080);
      ASSERT_TRUE(client.ok()) << "node to guest " << pod_ip;
      UniqueFd server = AcceptSoon(inside.get());
      ASSERT_TRUE(server.ok());
      ExpectBulk(client.get(), server.get(), 8 << 20);

      UniqueFd outside = ListenAt(node_, node_ip, 9090);
      client = Dial(guest.netns(), node_ip, 9090);
      ASSERT_TRUE(client.ok()) << "guest to node " << node_ip;
      server = AcceptSoon(outside.get());
      ASSERT_TRUE(server.ok());
      ExpectBulk(client.get(), server.get(), 8 << 20);
      // What listens in the pod's netns on the host is never reached.
      UniqueFd hidden = ListenAt(pod_, pod_ip, 7070);
      EXPECT_FALSE(Dial(node_, pod_ip, 7070).ok());
    }
    // The guest finds its neighbours itself: nobody else answers for its addresses.
    EXPECT_THAT(node_.Run("ip neigh"), HasSubstr(network->taps[0].mac));
  }
  network->taps.clear();
  absl::Status detached = manager_->Detach(pod_.path(), 12345);
  EXPECT_TRUE(detached.ok()) << detached;
  EXPECT_EQ(State(), before);
}

TEST_F(AttachRootTest, NothingOfThePodsHostSideReachesTheGuest) {
  MakePod();
  node_.Run("sysctl -qw net.ipv6.conf.pod0.disable_ipv6=1");
  auto network = manager_->Attach(pod_.path(), 0);
  ASSERT_TRUE(network.ok()) << network.status();
  pollfd p = {.fd = network->taps[0].fd.get(), .events = POLLIN, .revents = 0};
  std::vector<unsigned char> frame(2000);
  // A stack on the tap itself would send reports and solicitations within a second.
  while (::poll(&p, 1, 1500) == 1) {
    const ssize_t n = ::read(p.fd, frame.data(), frame.size());
    ADD_FAILURE() << "a frame of " << n << " bytes";
  }
}

TEST_F(AttachRootTest, LoopbackIsForwardedAndTellsItsPort) {
  MakePod();
  auto network = manager_->Attach(pod_.path(), 0);
  ASSERT_TRUE(network.ok()) << network.status();
  const int listener = network->forward_listener.get();
  for (const char* ip : {"127.0.0.1", "127.8.9.10", "::1"}) {
    for (uint16_t port : {80, 65535}) {
      UniqueFd client = Dial(pod_, ip, port);
      ASSERT_TRUE(client.ok()) << ip;
      UniqueFd server = AcceptSoon(listener);
      ASSERT_TRUE(server.ok()) << ip;
      sockaddr_in6 peer = {};
      socklen_t size = sizeof(peer);
      ASSERT_EQ(::getpeername(server.get(), reinterpret_cast<sockaddr*>(&peer), &size), 0);
      const bool v4 = IN6_IS_ADDR_V4MAPPED(&peer.sin6_addr);
      EXPECT_EQ(v4, std::string(ip) != "::1");
      sockaddr_in6 original = {};
      size = sizeof(original);
      ASSERT_EQ(::getsockopt(server.get(), v4 ? SOL_IP : SOL_IPV6,
                             v4 ? SO_ORIGINAL_DST : kIp6OriginalDst, &original, &size),
                0)
          << std::strerror(errno);
      EXPECT_EQ(ntohs(original.sin6_port), port) << ip;
      EXPECT_EQ(::send(client.get(), "hello", 5, MSG_NOSIGNAL), 5);
      char text[5];
      EXPECT_EQ(::recv(server.get(), text, sizeof(text), MSG_WAITALL), 5);
    }
  }
}

TEST_F(AttachRootTest, RepeatsAfterACrashAndDetachesTwice) {
  MakePod();
  const std::string before = State();
  // What remains when the process dies: everything but the descriptors.
  { ASSERT_TRUE(manager_->Attach(pod_.path(), 0).ok()); }
  auto again = manager_->Attach(pod_.path(), 0);
  ASSERT_TRUE(again.ok()) << again.status();
  absl::Status busy = manager_->Attach(pod_.path(), 0).status();
  EXPECT_EQ(busy.code(), absl::StatusCode::kFailedPrecondition) << busy;
  EXPECT_TRUE(manager_->Detach(pod_.path(), 0).ok());
  EXPECT_TRUE(manager_->Detach(pod_.path(), 0).ok());
  EXPECT_EQ(State(), before);
}

TEST_F(AttachRootTest, ASecondSandboxLeavesTheLivingOneAlone) {
  MakePod();
  const std::string before = State();
  auto network = manager_->Attach(pod_.path(), 1001);
  ASSERT_TRUE(network.ok()) << network.status();
  const std::string tied = State();
  EXPECT_EQ(manager_->Attach(pod_.path(), 1002).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(State(), tied);
  // As its teardown does, if it was journalled.
  EXPECT_TRUE(manager_->Detach(pod_.path(), 1002).ok());
  EXPECT_EQ(State(), tied);
  {
    Guest guest(network->taps[0].fd.get(), network->guest);
    UniqueFd inside = ListenAt(guest.netns(), "10.66.0.2", 8080);
    EXPECT_TRUE(Dial(node_, "10.66.0.2", 8080).ok());
  }
  EXPECT_TRUE(manager_->Detach(pod_.path(), 1001).ok());
  EXPECT_EQ(State(), before);
}

TEST_F(AttachRootTest, TellsOfRulesThatTrafficBypasses) {
  MakePod();
  pod_.Run("nft add table ip filter");
  auto network = manager_->Attach(pod_.path(), 0);
  ASSERT_TRUE(network.ok()) << network.status();
  EXPECT_THAT(network->foreign_tables, ::testing::ElementsAre("ip filter"));
  EXPECT_TRUE(manager_->Detach(pod_.path(), 0).ok());
  EXPECT_THAT(pod_.Run("nft list tables"), ::testing::StrEq("table ip filter\n"));
}

TEST_F(AttachRootTest, MoreInterfacesThanAVmTakesLeaveNothing) {
  MakePod();
  for (int i = 1; i < 5; ++i) {
    pod_.Run(absl::StrCat("ip link add net", i, " type veth peer name peer", i, " netns ",
                          node_.path(), "; ip link set net", i, " up"));
  }
  const std::string before = State();
  const absl::Status status = manager_->Attach(pod_.path(), 0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("net4"));
  EXPECT_EQ(State(), before);
}

TEST_F(AttachRootTest, RefusesAForeignQdiscAndLeavesIt) {
  MakePod();
  pod_.Run(
      "tc qdisc add dev eth0 ingress; tc qdisc add dev eth0 root tbf rate 1mbit burst 32k latency "
      "1s");
  const std::string before = State();
  absl::Status status = manager_->Attach(pod_.path(), 0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("eth0"));
  EXPECT_EQ(State(), before);
  EXPECT_TRUE(manager_->Detach(pod_.path(), 0).ok());
  EXPECT_EQ(State(), before);
}

TEST_F(AttachRootTest, AFailureHalfwayLeavesNothing) {
  MakePod();
  pod_.Run(
      "ip link add eth1 type veth peer name eth1peer; ip link set eth1 up; "
      "ip link set eth1peer down");
  // The second interface's tap cannot be made.
  const int eth1 = std::atoi(pod_.Run("ip -o link show eth1").c_str());
  pod_.Run(absl::StrCat("ip link add tap", absl::Hex(eth1), "_mgt type bridge"));
  const std::string before = State();
  EXPECT_FALSE(manager_->Attach(pod_.path(), 0).ok());
  EXPECT_EQ(State(), before);
}

TEST_F(AttachRootTest, MacvlanToo) {
  node_.Run(
      "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up; "
      "ip addr add 10.67.0.1/24 dev up1");
  node_.Run(
      absl::StrCat("ip link add link up0 name mv0 type macvlan mode bridge; ip link set mv0 netns ",
                   pod_.path(), " name eth0"));
  pod_.Run("ip link set lo up; ip addr add 10.67.0.2/24 dev eth0; ip link set eth0 up");
  auto network = manager_->Attach(pod_.path(), 0);
  ASSERT_TRUE(network.ok()) << network.status();
  Guest guest(network->taps[0].fd.get(), network->guest);
  UniqueFd inside = ListenAt(guest.netns(), "10.67.0.2", 8080);
  UniqueFd client = Dial(node_, "10.67.0.2", 8080);
  ASSERT_TRUE(client.ok());
  UniqueFd server = AcceptSoon(inside.get());
  ASSERT_TRUE(server.ok());
  ExpectBulk(client.get(), server.get(), 1 << 20);
}

TEST_F(AttachRootTest, AnEmptyNetnsIsFine) {
  pod_.Run("ip link set lo up");
  auto network = manager_->Attach(pod_.path(), 0);
  ASSERT_TRUE(network.ok()) << network.status();
  EXPECT_TRUE(network->taps.empty());
  EXPECT_TRUE(manager_->Detach(pod_.path(), 0).ok());
}

}  // namespace
}  // namespace magnetar::daemon
