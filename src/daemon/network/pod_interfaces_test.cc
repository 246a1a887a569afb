#include "src/daemon/network/pod_interfaces.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include "absl/strings/str_cat.h"
#include "vmm/qemu/command_line.h"

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

IpPrefix Prefix(const std::string& text, int length) {
  IpPrefix prefix;
  prefix.family = text.find(':') == std::string::npos ? AF_INET : AF_INET6;
  EXPECT_EQ(::inet_pton(prefix.family, text.c_str(), prefix.bytes.data()), 1) << text;
  prefix.length = length;
  return prefix;
}

LinkState Veth(int index = 2, const std::string& name = "eth0") {
  LinkState link;
  link.index = index;
  link.name = name;
  link.kind = "veth";
  link.mac = "02:42:ac:11:00:02";
  link.mtu = 1450;
  link.up = true;
  link.qdiscs = {{.kind = "noqueue", .handle = 0}};
  return link;
}

RouteState Route(const IpPrefix& destination, uint8_t protocol = RTPROT_BOOT) {
  RouteState route;
  route.link = 2;
  route.destination = destination;
  route.table = RT_TABLE_MAIN;
  route.type = RTN_UNICAST;
  route.protocol = protocol;
  return route;
}

RouteState Gateway(const IpPrefix& destination, const IpPrefix& gateway) {
  RouteState route = Route(destination);
  route.gateway = gateway;
  return route;
}

// What the bridge plugin leaves.
NetnsSnapshot BridgePod() {
  NetnsSnapshot snapshot;
  LinkState lo;
  lo.index = 1;
  lo.name = "lo";
  lo.loopback = lo.up = true;
  snapshot.links = {lo, Veth()};
  snapshot.addresses = {
      {.link = 1, .local = Prefix("127.0.0.1", 8), .peer = {}, .flags = IFA_F_PERMANENT},
      {.link = 2, .local = Prefix("10.1.0.7", 24), .peer = {}, .flags = IFA_F_PERMANENT},
      {.link = 2, .local = Prefix("fd01::7", 64), .peer = {}, .flags = IFA_F_PERMANENT},
      {.link = 2, .local = Prefix("fe80::42:acff:fe11:2", 64), .peer = {}, .flags = 0}};
  snapshot.routes = {Gateway(Prefix("0.0.0.0", 0), Prefix("10.1.0.1", 32)),
                     Route(Prefix("10.1.0.0", 24), RTPROT_KERNEL),
                     Route(Prefix("fd01::", 64), RTPROT_KERNEL),
                     Route(Prefix("fe80::", 64), RTPROT_KERNEL),
                     Route(Prefix("ff00::", 8), RTPROT_KERNEL),
                     Gateway(Prefix("::", 0), Prefix("fd01::1", 128))};
  return snapshot;
}

std::vector<std::string> Destinations(const agent::v1::Network& network) {
  std::vector<std::string> out;
  for (const auto& route : network.routes()) out.push_back(route.destination());
  return out;
}

TEST(TapNameTest, FitsEveryIndexAndComesBack) {
  EXPECT_EQ(TapName(2), "tap2_mgt");
  EXPECT_LE(TapName(0x7fffffff).size(), 15u);
  LinkState link;
  link.kind = "tun";
  for (int index : {1, 2, 255, 0x7fffffff}) {
    link.name = TapName(index);
    EXPECT_EQ(InterfaceOfTap(link), index);
  }
}

TEST(TapNameTest, LeavesOthersAlone) {
  LinkState link;
  link.kind = "tun";
  for (const char* name :
       {"tap2", "tap_mgt", "tapx_mgt", "tap02_mgt", "tap0_mgt", "tap-1_mgt", "eth0"}) {
    link.name = name;
    EXPECT_FALSE(InterfaceOfTap(link).has_value()) << name;
  }
  link.name = "tap2_mgt";
  link.kind = "veth";
  EXPECT_FALSE(InterfaceOfTap(link).has_value());
}

TEST(SelectInterfacesTest, TakesVethAndLeavesLoopback) {
  auto selected = SelectInterfaces(BridgePod());
  ASSERT_TRUE(selected.ok()) << selected.status();
  ASSERT_THAT(*selected, SizeIs(1));
  EXPECT_EQ((*selected)[0].name, "eth0");
}

TEST(SelectInterfacesTest, IgnoresTunnelDevicesThatEveryNetnsHas) {
  NetnsSnapshot snapshot = BridgePod();
  LinkState sit;
  sit.index = 3;
  sit.name = "sit0";
  sit.kind = "sit";
  snapshot.links.push_back(sit);
  auto selected = SelectInterfaces(snapshot);
  ASSERT_TRUE(selected.ok()) << selected.status();
  EXPECT_THAT(*selected, SizeIs(1));
}

TEST(SelectInterfacesTest, RefusesByNameWhatCannotBeTied) {
  NetnsSnapshot snapshot = BridgePod();
  snapshot.links[1].kind = "ipvlan";
  absl::Status status = SelectInterfaces(snapshot).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("eth0: interfaces of kind ipvlan"));

  snapshot.links[1].kind = "";
  status = SelectInterfaces(snapshot).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("eth0: physical"));
}

TEST(SelectInterfacesTest, SaysThatThereIsNoPassthrough) {
  NetnsSnapshot snapshot = BridgePod();
  snapshot.links[1].kind = "";
  EXPECT_THAT(std::string(SelectInterfaces(snapshot).status().message()),
              HasSubstr("there is no passthrough of devices"));
}

TEST(SelectInterfacesTest, TakesATapOnlyIfSomebodyServesIt) {
  NetnsSnapshot snapshot = BridgePod();
  snapshot.links[1].kind = "tun";
  snapshot.links[1].carrier = true;
  EXPECT_TRUE(SelectInterfaces(snapshot).ok());
  snapshot.links[1].carrier = false;
  const absl::Status status = SelectInterfaces(snapshot).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("eth0: nobody holds the other end"));
}

TEST(SelectInterfacesTest, RefusesASecondOneWithTheSameAddress) {
  NetnsSnapshot snapshot = BridgePod();
  snapshot.links.push_back(Veth(3, "net1"));
  EXPECT_THAT(std::string(SelectInterfaces(snapshot).status().message()),
              HasSubstr("net1: has the Ethernet address of eth0"));
}

TEST(SelectLiveTest, TellsOfAllThatAreRefused) {
  NetnsSnapshot snapshot = BridgePod();
  snapshot.links.push_back(Veth(3, "net1"));
  snapshot.links[2].kind = "ipvlan";
  for (int i = 4; i < 8; ++i) snapshot.links.push_back(Veth(i, absl::StrCat("net", i)));
  for (LinkState& link : snapshot.links) link.mac = absl::StrCat("02:00:00:00:00:0", link.index);
  const Selection selection = SelectLive(snapshot, {});
  ASSERT_THAT(selection.interfaces, SizeIs(4));
  EXPECT_EQ(selection.interfaces[3].name, "net6");
  ASSERT_THAT(selection.refused, SizeIs(2));
  EXPECT_EQ(selection.refused[0].name, "net1");
  EXPECT_EQ(selection.refused[1].name, "net7");
}

TEST(SelectLiveTest, WhatIsTiedStays) {
  NetnsSnapshot snapshot = BridgePod();
  for (int i = 3; i < 8; ++i) snapshot.links.push_back(Veth(i, absl::StrCat("net", i)));
  for (LinkState& link : snapshot.links) link.mac = absl::StrCat("02:00:00:00:00:0", link.index);
  LinkState& last = snapshot.links.back();
  last.up = false;
  last.qdiscs.push_back({.kind = "ingress", .handle = 0xffff0000});
  LinkState tap;
  tap.index = 9;
  tap.name = TapName(7);
  tap.kind = "tun";
  tap.up = tap.carrier = true;
  snapshot.links.push_back(tap);
  const Selection selection = SelectLive(snapshot, {7});
  ASSERT_THAT(selection.interfaces, SizeIs(4));
  EXPECT_EQ(selection.interfaces[3].name, "net7");
  EXPECT_THAT(selection.refused, SizeIs(2));
  const agent::v1::Network network = BuildGuestNetwork(snapshot, selection.interfaces);
  EXPECT_TRUE(network.interfaces(3).down());
  EXPECT_FALSE(network.interfaces(0).down());
}

TEST(SelectLiveTest, WhatTheGuestCouldNotTellApartOrNameGoes) {
  NetnsSnapshot snapshot = BridgePod();
  for (int i = 3; i < 6; ++i) snapshot.links.push_back(Veth(i, absl::StrCat("net", i)));
  for (LinkState& link : snapshot.links) link.mac = absl::StrCat("02:00:00:00:00:0", link.index);
  snapshot.links[3].mac = snapshot.links[2].mac;
  snapshot.links[4].name = "net\xff";
  const Selection selection = SelectLive(snapshot, {2, 3, 4, 5});
  ASSERT_THAT(selection.interfaces, SizeIs(2));
  EXPECT_EQ(selection.interfaces[1].name, "net3");
  ASSERT_THAT(selection.refused, SizeIs(2));
  EXPECT_THAT(std::string(selection.refused[0].status.message()),
              HasSubstr("net4: has the Ethernet address of net3"));
  EXPECT_THAT(std::string(selection.refused[1].status.message()),
              HasSubstr("net\\xff: its name has other than ASCII characters"));
}

TEST(SelectInterfacesTest, RefusesForeignQdiscs) {
  for (const char* kind : {"ingress", "clsact", "tbf", "htb"}) {
    NetnsSnapshot snapshot = BridgePod();
    snapshot.links[1].qdiscs.push_back({.kind = kind, .handle = 0xffff0000});
    absl::Status status = SelectInterfaces(snapshot).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << kind;
    EXPECT_THAT(std::string(status.message()), HasSubstr(kind));
  }
}

TEST(SelectInterfacesTest, RefusesByNameTheFirstInterfaceTooMany) {
  static_assert(kMaxInterfaces <= vmm::qemu::kNicPorts);
  NetnsSnapshot snapshot;
  for (int i = 0; i < 5; ++i) {
    snapshot.links.push_back(Veth(2 + i, absl::StrCat("net", i)));
    snapshot.links.back().mac = absl::StrCat("02:00:00:00:00:0", i);
  }
  const LinkState last = snapshot.links.back();
  snapshot.links.pop_back();
  EXPECT_TRUE(SelectInterfaces(snapshot).ok());
  snapshot.links.push_back(last);
  const absl::Status status = SelectInterfaces(snapshot).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("net4: a VM takes at most 4"));
}

TEST(SelectInterfacesTest, TakesWhateverDefaultQdiscTheHostHas) {
  NetnsSnapshot snapshot = BridgePod();
  snapshot.links[1].qdiscs = {{.kind = "cake", .handle = 0}, {.kind = "mq", .handle = 0x80010000}};
  EXPECT_TRUE(SelectInterfaces(snapshot).ok());
}

TEST(BuildGuestNetworkTest, BridgePod) {
  NetnsSnapshot snapshot = BridgePod();
  const agent::v1::Network network = BuildGuestNetwork(snapshot, {Veth()});
  ASSERT_THAT(network.interfaces(), SizeIs(1));
  EXPECT_EQ(network.interfaces(0).name(), "eth0");
  EXPECT_EQ(network.interfaces(0).mac(), "02:42:ac:11:00:02");
  EXPECT_EQ(network.interfaces(0).mtu(), 1450u);
  EXPECT_THAT(network.interfaces(0).addresses(),
              ElementsAre("10.1.0.7/24", "fd01::7/64", "fe80::42:acff:fe11:2/64"));
  EXPECT_THAT(Destinations(network), ElementsAre("0.0.0.0/0", "::/0"));
  EXPECT_EQ(network.routes(0).gateway(), "10.1.0.1");
  EXPECT_EQ(network.routes(0).device(), "eth0");
  EXPECT_EQ(network.routes(1).gateway(), "fd01::1");
}

TEST(BuildGuestNetworkTest, CalicoKeepsItsLinkLocalGateway) {
  NetnsSnapshot snapshot;
  snapshot.links = {Veth()};
  snapshot.addresses = {{.link = 2, .local = Prefix("10.244.1.5", 32), .peer = {}, .flags = 0}};
  RouteState gateway = Route(Prefix("169.254.1.1", 32));
  gateway.scope = RT_SCOPE_LINK;
  snapshot.routes = {Gateway(Prefix("0.0.0.0", 0), Prefix("169.254.1.1", 32)), gateway};
  snapshot.neighbours = {{.link = 2,
                          .address = Prefix("169.254.1.1", 32),
                          .mac = "ee:ee:ee:ee:ee:ee",
                          .state = NUD_PERMANENT,
                          .flags = 0},
                         {.link = 2,
                          .address = Prefix("10.244.1.9", 32),
                          .mac = "02:00:00:00:00:09",
                          .state = NUD_REACHABLE,
                          .flags = 0}};
  const agent::v1::Network network = BuildGuestNetwork(snapshot, snapshot.links);
  EXPECT_THAT(network.interfaces(0).addresses(), ElementsAre("10.244.1.5/32"));
  // The gateway's own route first, or the default route cannot be added.
  ASSERT_THAT(Destinations(network), ElementsAre("169.254.1.1/32", "0.0.0.0/0"));
  EXPECT_EQ(network.routes(0).scope(), static_cast<uint32_t>(RT_SCOPE_LINK));
  ASSERT_THAT(network.neighbours(), SizeIs(1));
  EXPECT_EQ(network.neighbours(0).address(), "169.254.1.1");
  EXPECT_EQ(network.neighbours(0).mac(), "ee:ee:ee:ee:ee:ee");
}

TEST(BuildGuestNetworkTest, PtpPluginHasNoRouteToItsOwnSubnet) {
  NetnsSnapshot snapshot;
  snapshot.links = {Veth()};
  snapshot.addresses = {{.link = 2, .local = Prefix("10.1.0.7", 24), .peer = {}, .flags = 0}};
  RouteState host = Route(Prefix("10.1.0.1", 32));
  host.scope = RT_SCOPE_LINK;
  snapshot.routes = {Gateway(Prefix("10.1.0.0", 24), Prefix("10.1.0.1", 32)), host};
  const agent::v1::Network network = BuildGuestNetwork(snapshot, snapshot.links);
  EXPECT_THAT(network.interfaces(0).addresses(), ElementsAre("10.1.0.7/32"));
  EXPECT_THAT(Destinations(network), ElementsAre("10.1.0.1/32", "10.1.0.0/24"));
}

TEST(BuildGuestNetworkTest, PeerBecomesARoute) {
  NetnsSnapshot snapshot;
  snapshot.links = {Veth()};
  snapshot.addresses = {
      {.link = 2, .local = Prefix("10.1.0.7", 32), .peer = Prefix("10.9.0.1", 32), .flags = 0}};
  snapshot.routes = {Route(Prefix("10.9.0.1", 32), RTPROT_KERNEL)};
  const agent::v1::Network network = BuildGuestNetwork(snapshot, snapshot.links);
  EXPECT_THAT(network.interfaces(0).addresses(), ElementsAre("10.1.0.7/32"));
  EXPECT_THAT(Destinations(network), ElementsAre("10.9.0.1/32"));
}

TEST(BuildGuestNetworkTest, LinkLocalAddressesAndRoutesFollowTheNetns) {
  NetnsSnapshot snapshot;
  snapshot.links = {Veth()};
  snapshot.addresses = {
      {.link = 2, .local = Prefix("fe80::7", 64), .peer = {}, .flags = IFA_F_PERMANENT},
      {.link = 2,
       .local = Prefix("fe80::1234:5678:9abc:def0", 64),
       .peer = {},
       .flags = IFA_F_STABLE_PRIVACY | IFA_F_TENTATIVE},
      {.link = 2, .local = Prefix("fe80::8", 64), .peer = {}, .flags = IFA_F_DADFAILED},
      {.link = 2, .local = Prefix("fd01::9", 64), .peer = {}, .flags = IFA_F_TEMPORARY}};
  snapshot.routes = {Route(Prefix("fe80::1", 128)), Route(Prefix("fe80::", 64), RTPROT_KERNEL),
                     Gateway(Prefix("::", 0), Prefix("fe80::1", 128))};
  const agent::v1::Network network = BuildGuestNetwork(snapshot, snapshot.links);
  EXPECT_THAT(network.interfaces(0).addresses(),
              ElementsAre("fe80::7/64", "fe80::1234:5678:9abc:def0/64"));
  EXPECT_THAT(Destinations(network), ElementsAre("fe80::1/128", "::/0"));
}

TEST(BuildGuestNetworkTest, AllAddressesOfANetwork) {
  NetnsSnapshot snapshot;
  snapshot.links = {Veth()};
  snapshot.addresses = {
      {.link = 2, .local = Prefix("10.66.0.2", 24), .peer = {}, .flags = IFA_F_PERMANENT},
      {.link = 2,
       .local = Prefix("10.66.0.3", 24),
       .peer = {},
       .flags = IFA_F_PERMANENT | IFA_F_SECONDARY}};
  snapshot.routes = {Route(Prefix("10.66.0.0", 24), RTPROT_KERNEL)};
  const agent::v1::Network network = BuildGuestNetwork(snapshot, snapshot.links);
  EXPECT_THAT(network.interfaces(0).addresses(), ElementsAre("10.66.0.2/24", "10.66.0.3/24"));
}

TEST(BuildGuestNetworkTest, OneHopOfAMultipathRoute) {
  NetnsSnapshot snapshot = BridgePod();
  snapshot.routes.push_back(Gateway(Prefix("0.0.0.0", 0), Prefix("10.1.0.3", 32)));
  RouteState backup = Gateway(Prefix("0.0.0.0", 0), Prefix("10.1.0.4", 32));
  backup.metric = 500;
  snapshot.routes.push_back(backup);
  const agent::v1::Network network = BuildGuestNetwork(snapshot, {Veth()});
  EXPECT_THAT(Destinations(network), ElementsAre("0.0.0.0/0", "::/0", "0.0.0.0/0"));
  EXPECT_EQ(network.routes(0).gateway(), "10.1.0.1");
  EXPECT_EQ(network.routes(2).gateway(), "10.1.0.4");
}

TEST(BuildGuestNetworkTest, LeavesOtherTablesAndInterfacesAlone) {
  NetnsSnapshot snapshot = BridgePod();
  RouteState other = Route(Prefix("10.5.0.0", 16));
  other.table = 100;
  RouteState blackhole = Route(Prefix("10.6.0.0", 16));
  blackhole.type = RTN_BLACKHOLE;
  RouteState elsewhere = Route(Prefix("10.7.0.0", 16));
  elsewhere.link = 9;
  snapshot.routes = {other, blackhole, elsewhere};
  EXPECT_THAT(Destinations(BuildGuestNetwork(snapshot, {Veth()})), IsEmpty());
}

}  // namespace
}  // namespace magnetar::daemon
