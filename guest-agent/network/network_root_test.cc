// GuestNetwork on the kernel, in a network namespace of the test's own. The NICs are ends of
// veth pairs whose other ends lie beside them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "guest-agent/network/netlink.h"
#include "guest-agent/network/network.h"

namespace magnetar::guest {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kMacA[] = "02:00:00:00:00:0a";
constexpr char kMacB[] = "02:00:00:00:00:0b";
constexpr std::chrono::milliseconds kSoon{100};
// What a kernel would derive from kMacA.
constexpr char kDerivedA[] = "fe80::ff:fe00:a";

std::string Shell(const std::string& command) {
  FILE* pipe = ::popen(absl::StrCat("(", command, ") 2>&1").c_str(), "r");
  if (pipe == nullptr) return "popen failed";
  std::string out;
  char buffer[4096];
  while (const size_t n = ::fread(buffer, 1, sizeof(buffer), pipe)) out.append(buffer, n);
  if (::pclose(pipe) != 0) ADD_FAILURE() << command << ": " << out;
  return out;
}

class NetworkRootTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  }

  // Runs `body` in a namespace with the NICs eth0 (kMacA) and eth1 (kMacB), which are down.
  static void InGuest(const std::function<void()>& body) {
    bool entered = false;
    std::thread([&] {
      entered = ::unshare(CLONE_NEWNET) == 0;
      if (!entered) return;
      Shell(absl::StrCat("ip link add eth0 address ", kMacA, " type veth peer name peer0; ",
                         "ip link add eth1 address ", kMacB, " type veth peer name peer1; ",
                         "ip link set peer0 up; ip link set peer1 up"));
      body();
    }).join();
    if (!entered) GTEST_SKIP() << "no network namespaces here";
  }

  static std::string State() {
    return Shell(
        "ip -o addr show dev eth0; ip -o addr show dev eth1; ip route; ip -6 route; ip neigh");
  }

  static agent::v1::Network OneInterface(std::vector<std::string> addresses) {
    agent::v1::Network network;
    agent::v1::Interface& interface = *network.add_interfaces();
    interface.set_name("eth0");
    interface.set_mac(kMacA);
    interface.set_mtu(1400);
    for (std::string& address : addresses) interface.add_addresses(std::move(address));
    return network;
  }

  static void AddRoute(agent::v1::Network& network, const std::string& destination,
                       const std::string& gateway, uint32_t metric = 0) {
    agent::v1::Route& route = *network.add_routes();
    route.set_destination(destination);
    route.set_gateway(gateway);
    route.set_device("eth0");
    route.set_metric(metric);
  }

  // As a CNI bridge leaves it, with everything that can be configured.
  static agent::v1::Network Everything() {
    agent::v1::Network network =
        OneInterface({"10.9.0.2/24", "fd09::2/64", absl::StrCat(kDerivedA, "/64")});
    AddRoute(network, "0.0.0.0/0", "10.9.0.1");
    AddRoute(network, "::/0", "fd09::1", 1024);
    AddRoute(network, "10.77.0.0/16", "");
    AddRoute(network, "fd77::/48", "fe80::1");
    agent::v1::Neighbour& neighbour = *network.add_neighbours();
    neighbour.set_device("eth0");
    neighbour.set_address("10.9.0.1");
    neighbour.set_mac("02:00:00:00:00:ff");
    return network;
  }
};

// Routes that the kernel says have been removed since it was made.
class RemovedRoutes {
 public:
  RemovedRoutes() {
    auto socket = ConnectNetlink();
    EXPECT_TRUE(socket.ok()) << socket.status();
    socket_ = *std::move(socket);
    ::nl_socket_disable_seq_check(socket_.get());
    ::nl_socket_add_memberships(socket_.get(), RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, 0);
    ::nl_socket_set_nonblocking(socket_.get());
    ::nl_socket_modify_cb(socket_.get(), NL_CB_VALID, NL_CB_CUSTOM, &RemovedRoutes::OnMessage,
                          &count_);
  }
  int Count() {
    // Notifications are queued before the call that causes them returns.
    while (::nl_recvmsgs_default(socket_.get()) >= 0) {
    }
    return count_;
  }

 private:
  static int OnMessage(nl_msg* message, void* count) {
    if (::nlmsg_hdr(message)->nlmsg_type == RTM_DELROUTE) ++*static_cast<int*>(count);
    return NL_OK;
  }

  NlSocket socket_;
  int count_ = 0;
};

TEST_F(NetworkRootTest, RepeatingItChangesNothing) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    const agent::v1::Network network = Everything();
    absl::Status status = guest.Configure(network);
    ASSERT_TRUE(status.ok()) << status;
    const std::string first = State();
    EXPECT_THAT(first, HasSubstr("10.9.0.2/24"));
    EXPECT_THAT(first, HasSubstr("fd09::2/64"));
    EXPECT_THAT(first, HasSubstr("default via 10.9.0.1"));
    EXPECT_THAT(first, HasSubstr("default via fd09::1"));
    EXPECT_THAT(first, HasSubstr("10.77.0.0/16"));
    EXPECT_THAT(first, HasSubstr("10.9.0.1 dev eth0 lladdr 02:00:00:00:00:ff PERMANENT"));
    EXPECT_THAT(first, Not(HasSubstr("tentative")));
    EXPECT_THAT(Shell("ip link show eth0"), HasSubstr("mtu 1400"));
    RemovedRoutes removed;
    status = guest.Configure(network);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(removed.Count(), 0) << "a route was away for a moment";
    EXPECT_EQ(State(), first);
  });
}

TEST_F(NetworkRootTest, LinkLocalAddressesAreTheGivenOnes) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    absl::Status status = guest.Configure(OneInterface({"fe80::77/64"}));
    ASSERT_TRUE(status.ok()) << status;
    std::string addresses = Shell("ip -6 -o addr show dev eth0");
    EXPECT_THAT(addresses, HasSubstr("fe80::77/64"));
    EXPECT_THAT(addresses, Not(HasSubstr(kDerivedA)));
    status = guest.Configure(OneInterface({absl::StrCat(kDerivedA, "/64")}));
    ASSERT_TRUE(status.ok()) << status;
    addresses = Shell("ip -6 -o addr show dev eth0");
    EXPECT_THAT(addresses, HasSubstr(kDerivedA));
    EXPECT_THAT(addresses, Not(HasSubstr("fe80::77")));
  });
}

TEST_F(NetworkRootTest, WithoutIpv6AddressesThereIsNoIpv6) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    absl::Status status = guest.Configure(OneInterface({"10.9.0.2/24"}));
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_THAT(Shell("ip -6 -o addr show dev eth0"), IsEmpty());
    EXPECT_EQ(Shell("cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6"), "1\n");
    status = guest.Configure(OneInterface({"10.9.0.2/24", "fd09::2/64"}));
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_THAT(Shell("ip -6 -o addr show dev eth0"), HasSubstr("fd09::2/64"));
  });
}

TEST_F(NetworkRootTest, InterfacesSwapNames) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    agent::v1::Network network = OneInterface({"10.9.0.2/24"});
    network.mutable_interfaces(0)->set_name("eth1");
    agent::v1::Interface& other = *network.add_interfaces();
    other.set_name("eth0");
    other.set_mac(kMacB);
    other.add_addresses("10.8.0.2/24");
    for (int times = 0; times < 2; ++times) {
      const absl::Status status = guest.Configure(network);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_THAT(Shell("ip -o link show eth1"), HasSubstr(kMacA));
      EXPECT_THAT(Shell("ip -o addr show eth1"), HasSubstr("10.9.0.2/24"));
      EXPECT_THAT(Shell("ip -o link show eth0"), HasSubstr(kMacB));
      EXPECT_THAT(Shell("ip -o addr show eth0"), HasSubstr("10.8.0.2/24"));
    }
  });
}

TEST_F(NetworkRootTest, WhatIsNoLongerWantedGoes) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    agent::v1::Network before = Everything();
    before.mutable_interfaces(0)->add_addresses("10.8.0.2/24");
    ASSERT_TRUE(guest.Configure(before).ok());
    Shell("ip route add 10.55.0.0/16 dev eth0 proto 99");
    agent::v1::Network network = OneInterface({"10.9.0.2/24", "fd09::2/64"});
    AddRoute(network, "0.0.0.0/0", "10.9.0.9");
    const absl::Status status = guest.Configure(network);
    ASSERT_TRUE(status.ok()) << status;
    const std::string state = State();
    EXPECT_THAT(state, HasSubstr("10.9.0.2/24"));
    EXPECT_THAT(state, Not(HasSubstr("10.8.0.2/24")));
    EXPECT_THAT(state, Not(HasSubstr(kDerivedA)));
    EXPECT_THAT(state, HasSubstr("default via 10.9.0.9"));
    EXPECT_THAT(state, Not(HasSubstr("default via 10.9.0.1")));
    EXPECT_THAT(state, Not(HasSubstr("default via fd09::1")));
    EXPECT_THAT(state, Not(HasSubstr("10.77.0.0/16")));
    EXPECT_THAT(state, HasSubstr("10.55.0.0/16")) << "a container's own route stays";
  });
}

TEST_F(NetworkRootTest, AnUnknownMacIsNamed) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    agent::v1::Network network = OneInterface({});
    network.mutable_interfaces(0)->set_mac("02:00:00:00:00:0c");
    const absl::Status status = guest.Configure(network);
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(status.message()), HasSubstr("eth0: no NIC with MAC"));
  });
}

TEST_F(NetworkRootTest, ANicThatIsBeingPluggedInIsWaitedFor) {
  InGuest([] {
    GuestNetwork guest(std::chrono::seconds(20));
    agent::v1::Network network = OneInterface({"10.9.0.2/24"});
    agent::v1::Interface& late = *network.add_interfaces();
    late.set_name("net1");
    late.set_mac("02:00:00:00:00:0c");
    late.add_addresses("10.7.0.2/24");
    std::thread plug(
        [] { Shell("ip link add whatever address 02:00:00:00:00:0c type veth peer name peer2"); });
    const absl::Status status = guest.Configure(network);
    plug.join();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_THAT(Shell("ip -o addr show dev net1"), HasSubstr("10.7.0.2/24"));
  });
}

TEST_F(NetworkRootTest, OneThatIsMissingDoesNotKeepTheOthersFromBeingSetUp) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    agent::v1::Network network = OneInterface({"10.9.0.2/24"});
    agent::v1::Interface& missing = *network.add_interfaces();
    missing.set_name("net1");
    missing.set_mac("02:00:00:00:00:0c");
    AddRoute(network, "no address", "");
    AddRoute(network, "10.77.0.0/16", "");
    EXPECT_EQ(guest.Configure(network).code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(State(), HasSubstr("10.9.0.2/24"));
    EXPECT_THAT(State(), HasSubstr("10.77.0.0/16"));
  });
}

TEST_F(NetworkRootTest, AnInterfaceThatIsGoneIsOutOfTheWay) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    agent::v1::Network network = OneInterface({"10.9.0.2/24"});
    agent::v1::Interface& other = *network.add_interfaces();
    other.set_name("net1");
    other.set_mac(kMacB);
    other.add_addresses("10.8.0.2/24");
    ASSERT_TRUE(guest.Configure(network).ok());
    // Another one takes its name, while its NIC is still there.
    Shell("ip link add new address 02:00:00:00:00:0c type veth peer name peer2");
    other.set_mac("02:00:00:00:00:0c");
    absl::Status status = guest.Configure(network);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_THAT(Shell("ip -o link show dev net1"), HasSubstr("02:00:00:00:00:0c"));
    EXPECT_THAT(Shell("ip -o addr show dev net1"), HasSubstr("10.8.0.2/24"));
    const std::string links = Shell("ip -o link");
    EXPECT_THAT(links, HasSubstr("gone"));
    network.mutable_interfaces()->RemoveLast();
    status = guest.Configure(network);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_THAT(Shell("ip -o addr"), Not(HasSubstr("10.8.0.2/24")));
    EXPECT_THAT(Shell("ip -o link"), Not(HasSubstr("net1")));
    EXPECT_THAT(Shell("ip -o addr show dev eth0"), HasSubstr("10.9.0.2/24"));
  });
}

TEST_F(NetworkRootTest, WhatContainersHaveAddedStays) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    agent::v1::Network network = OneInterface({"10.9.0.2/24"});
    ASSERT_TRUE(guest.Configure(network).ok());
    Shell(
        "ip addr add 10.9.0.200/32 dev eth0; ip link add br0 type bridge; "
        "ip link set br0 address 02:00:00:00:00:0a; ip link set br0 up");
    network.mutable_interfaces(0)->add_addresses("10.9.0.3/24");
    const absl::Status status = guest.Configure(network);
    ASSERT_TRUE(status.ok()) << status;
    const std::string addresses = Shell("ip -o addr show dev eth0");
    EXPECT_THAT(addresses, HasSubstr("10.9.0.3/24"));
    EXPECT_THAT(addresses, HasSubstr("10.9.0.200/32"));
    EXPECT_THAT(Shell("ip -d -o link show br0"), HasSubstr("bridge"));
  });
}

TEST_F(NetworkRootTest, ANeighbourThatIsNoLongerPermanentGoes) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    agent::v1::Network network = Everything();
    ASSERT_TRUE(guest.Configure(network).ok());
    Shell("ip neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    network.clear_neighbours();
    const absl::Status status = guest.Configure(network);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_THAT(Shell("ip neigh"), Not(HasSubstr("02:00:00:00:00:ff")));
    EXPECT_THAT(Shell("ip neigh"), HasSubstr("02:00:00:00:00:77"));
  });
}

TEST_F(NetworkRootTest, AnInterfaceGoesDownAndUpAgain) {
  InGuest([] {
    GuestNetwork guest(kSoon);
    agent::v1::Network network = OneInterface({"10.9.0.2/24"});
    ASSERT_TRUE(guest.Configure(network).ok());
    EXPECT_THAT(Shell("ip -o link show dev eth0"), HasSubstr(",UP"));
    network.mutable_interfaces(0)->set_down(true);
    ASSERT_TRUE(guest.Configure(network).ok());
    EXPECT_THAT(Shell("ip -o link show dev eth0"), Not(HasSubstr(",UP")));
    network.mutable_interfaces(0)->set_down(false);
    ASSERT_TRUE(guest.Configure(network).ok());
    EXPECT_THAT(Shell("ip -o link show dev eth0"), HasSubstr(",UP"));
    EXPECT_THAT(Shell("ip -o addr show dev eth0"), HasSubstr("10.9.0.2/24"));
  });
}

}  // namespace
}  // namespace magnetar::guest
