// The calls for a pod that runs, on real namespaces.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "src/daemon/network/news.h"
#include "src/daemon/network/pod_interfaces.h"
#include "src/daemon/network/pod_network.h"
#include "src/daemon/network/testing/test_netns.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr uint32_t kUid = 12345;

class LiveRootTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    if (!pod_.ok() || !node_.ok()) GTEST_SKIP() << "no network namespaces here";
    manager_ = CreateNetworkManager();
    pod_.Run("ip link set lo up");
    AddVeth("eth0", "10.66.0.2/24");
    auto network = manager_->Attach(pod_.path(), kUid);
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
    auto watch = manager_->Watch(vmm_.Identity());
    ASSERT_TRUE(watch.ok()) << watch.status();
    watch_ = *std::move(watch);
  }

  void AddVeth(const std::string& name, const std::string& address) {
    pod_.Run(absl::StrCat("ip link add ", name, " type veth peer name p", name, " netns ",
                          node_.path(), "; ip addr add ", address, " dev ", name, "; ip link set ",
                          name, " up"));
    node_.Run(absl::StrCat("ip link set p", name, " up"));
  }

  PodState Read(const std::set<int>& tied = {}) {
    auto state = manager_->Read(watch_.netns.get(), kUid, tied);
    EXPECT_TRUE(state.ok()) << state.status();
    return state.ok() ? *std::move(state) : PodState();
  }

  // A carrier comes in its own time.
  std::string Shape() {
    return pod_.Run("tc qdisc; ip -o link | sed 's/ state.*//; s/NO-CARRIER,//; s/,LOWER_UP//'");
  }

  PodNews News() {
    pollfd p = {.fd = watch_.news.get(), .events = POLLIN, .revents = 0};
    PodNews news = PodNews::kNone;
    std::vector<char> buffer(65536);
    if (::poll(&p, 1, 5000) != 1) return news;
    ssize_t size;
    while ((size = ::recv(p.fd, buffer.data(), buffer.size(), 0)) > 0) {
      news = std::max(news, ReadPodNews(buffer.data(), static_cast<size_t>(size)));
    }
    return news;
  }

  Netns pod_;
  Netns node_;
  std::unique_ptr<NetworkManager> manager_;
  PodNetwork network_;
  ProcessIn vmm_{pod_.fd()};
  PodWatch watch_;
};

TEST_F(LiveRootTest, TheNetnsIsTheProcesss) {
  struct stat its = {}, pods = {};
  ASSERT_EQ(::fstat(watch_.netns.get(), &its), 0);
  ASSERT_EQ(::fstat(pod_.fd(), &pods), 0);
  EXPECT_EQ(its.st_ino, pods.st_ino);
  ProcessIdentity other = vmm_.Identity();
  ++other.start_time_ticks;
  EXPECT_TRUE(absl::IsNotFound(manager_->Watch(other).status()));
  other.pid = 1 << 23;
  EXPECT_TRUE(absl::IsNotFound(manager_->Watch(other).status()));
}

TEST_F(LiveRootTest, ReadsWhatIsTiedAndWhatIsNot) {
  AddVeth("net1", "10.67.0.2/24");
  const PodState state = Read();
  ASSERT_THAT(state.interfaces, SizeIs(2));
  EXPECT_EQ(state.interfaces[0].name, "eth0");
  EXPECT_TRUE(state.interfaces[0].tied);
  EXPECT_EQ(state.taps.at(state.interfaces[0].index), 1500u);
  EXPECT_EQ(state.interfaces[1].name, "net1");
  EXPECT_FALSE(state.interfaces[1].tied);
  EXPECT_THAT(state.refused, IsEmpty());
  EXPECT_THAT(state.taps, SizeIs(1));
  EXPECT_EQ(state.guest.interfaces_size(), 2);
}

TEST_F(LiveRootTest, TiesAndUntiesOneMore) {
  AddVeth("net1", "10.67.0.2/24");
  const std::string before = Shape();
  const PodInterface net1 = Read().interfaces.at(1);
  auto tap = manager_->Tie(watch_.netns.get(), net1, kUid);
  ASSERT_TRUE(tap.ok()) << tap.status();
  EXPECT_EQ(tap->tap, TapName(net1.index));
  EXPECT_TRUE(Read().interfaces.at(1).tied);
  EXPECT_THAT(pod_.Run("tc filter show dev net1 ingress"), HasSubstr(tap->tap));
  // Of another uid's VM it is not.
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), net1.index, kUid + 1).ok());
  EXPECT_TRUE(Read().interfaces.at(1).tied);
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), net1.index, kUid).ok());
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), net1.index, kUid).ok());
  EXPECT_EQ(Shape(), before);
  EXPECT_TRUE(Read().interfaces.at(0).tied);
}

TEST_F(LiveRootTest, AnInterfaceThatIsGoneLeavesItsTapToUntie) {
  const int index = Read().interfaces.at(0).index;
  pod_.Run("ip link del eth0");
  const PodState state = Read({index});
  EXPECT_THAT(state.interfaces, IsEmpty());
  EXPECT_EQ(state.taps.count(index), 1u);
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), index, kUid).ok());
  EXPECT_THAT(Read().taps, IsEmpty());
  PodInterface gone;
  gone.index = index;
  EXPECT_TRUE(absl::IsNotFound(manager_->Tie(watch_.netns.get(), gone, kUid).status()));
}

TEST_F(LiveRootTest, TellsWhetherAllThatTiesIsThere) {
  const PodInterface eth0 = Read().interfaces.at(0);
  (void)News();
  pod_.Run("tc qdisc del dev eth0 ingress");
  // More, if the kernel has something to say of its own.
  EXPECT_GE(News(), PodNews::kUntied);
  EXPECT_FALSE(Read({eth0.index}).interfaces.at(0).tied);
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), eth0.index, kUid).ok());
  EXPECT_TRUE(manager_->Tie(watch_.netns.get(), eth0, kUid).ok());
  EXPECT_TRUE(Read({eth0.index}).interfaces.at(0).tied);
  pod_.Run("tc filter del dev eth0 ingress");
  EXPECT_FALSE(Read({eth0.index}).interfaces.at(0).tied);
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), eth0.index, kUid).ok());
  EXPECT_TRUE(manager_->Tie(watch_.netns.get(), eth0, kUid).ok());
  // The qdisc that is left is known, also by a daemon that knows of no NIC.
  for (const bool untie : {true, false}) {
    pod_.Run(absl::StrCat("ip link del ", TapName(eth0.index)));
    const PodState state = Read();
    ASSERT_THAT(state.interfaces, SizeIs(1));
    EXPECT_FALSE(state.interfaces[0].tied);
    if (untie) {
      EXPECT_TRUE(manager_->Untie(watch_.netns.get(), eth0.index, kUid).ok());
    }
    EXPECT_TRUE(manager_->Tie(watch_.netns.get(), eth0, kUid).ok());
    EXPECT_TRUE(Read().interfaces.at(0).tied);
  }
}

TEST_F(LiveRootTest, SomebodyElsesQdiscStays) {
  const PodInterface eth0 = Read().interfaces.at(0);
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), eth0.index, kUid).ok());
  pod_.Run("tc qdisc add dev eth0 ingress");
  EXPECT_TRUE(absl::IsAlreadyExists(manager_->Tie(watch_.netns.get(), eth0, kUid).status()));
  EXPECT_TRUE(Read().taps.empty());
  // It still is there.
  pod_.Run("tc qdisc del dev eth0 ingress");
}

TEST_F(LiveRootTest, StaysWhileItIsDown) {
  const int index = Read().interfaces.at(0).index;
  pod_.Run("ip addr flush dev eth0; ip link set eth0 down");
  const PodState state = Read({index});
  ASSERT_THAT(state.interfaces, SizeIs(1));
  EXPECT_TRUE(state.guest.interfaces(0).down());
}

TEST_F(LiveRootTest, TheTapFollowsTheMtu) {
  pod_.Run("ip link set eth0 mtu 1300");
  const PodState before = Read();
  const PodInterface& eth0 = before.interfaces.at(0);
  EXPECT_EQ(eth0.mtu, 1300u);
  EXPECT_EQ(before.taps.at(eth0.index), 1500u);
  EXPECT_TRUE(manager_->SetMtu(watch_.netns.get(), eth0).ok());
  EXPECT_EQ(Read().taps.at(eth0.index), 1300u);
}

TEST_F(LiveRootTest, NewsOfOthersAndNotOfItself) {
  AddVeth("net1", "10.67.0.2/24");
  EXPECT_EQ(News(), PodNews::kChange);
  for (const char* command :
       {"ip addr add 10.67.0.3/24 dev net1", "ip -6 addr add fd67::3/64 dev net1",
        "ip route add 10.70.0.0/16 via 10.67.0.1",
        "ip neigh add 10.67.0.9 lladdr 02:00:00:00:00:99 dev net1 nud permanent",
        "ip link set net1 mtu 1400"}) {
    pod_.Run(command);
    EXPECT_EQ(News(), PodNews::kChange) << command;
  }
  // Link-local addresses come in their own time; without them everything is still.
  pod_.Run("sysctl -qw net.ipv6.conf.net1.disable_ipv6=1 net.ipv6.conf.eth0.disable_ipv6=1");
  EXPECT_EQ(News(), PodNews::kChange);
  const PodInterface net1 = Read().interfaces.at(1);
  auto tap = manager_->Tie(watch_.netns.get(), net1, kUid);
  ASSERT_TRUE(tap.ok()) << tap.status();
  EXPECT_EQ(News(), PodNews::kNone);
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), net1.index, kUid).ok());
  EXPECT_EQ(News(), PodNews::kUntied);
}

TEST_F(LiveRootTest, NewsThatWereTooManyAreToldOf) {
  for (int i = 0; i < 40; ++i) {
    pod_.Run("ip -batch - <<E\n" + [] {
      std::string batch;
      for (int j = 0; j < 50; ++j) {
        absl::StrAppend(&batch, "addr add 10.99.0.", j, "/32 dev eth0\naddr del 10.99.0.", j,
                        "/32 dev eth0\n");
      }
      return batch;
    }() + "E\n");
  }
  char buffer[32768];
  EXPECT_EQ(::recv(watch_.news.get(), buffer, sizeof(buffer), 0), -1);
  EXPECT_EQ(errno, ENOBUFS);
}

TEST_F(LiveRootTest, ManyInterfacesThatAreNotTheVms) {
  std::string batch;
  for (int i = 0; i < 500; ++i) {
    absl::StrAppend(&batch, "link add br", i, " type bridge\nlink set br", i, " up\n");
  }
  pod_.Run("ip -batch - <<E\n" + batch + "E\n");
  const PodState state = Read();
  EXPECT_THAT(state.interfaces, SizeIs(1));
  EXPECT_THAT(state.refused, SizeIs(500));
}

TEST_F(LiveRootTest, AMacvtapIsOpenedItself) {
  node_.Run("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
  node_.Run(absl::StrCat("ip link add link up0 name mvt0 type macvtap mode bridge; ",
                         "ip link set mvt0 netns ", pod_.path(), " name net1"));
  pod_.Run("ip addr add 10.67.0.2/24 dev net1; ip link set net1 up");
  const PodInterface net1 = Read().interfaces.at(1);
  EXPECT_TRUE(net1.tied);
  auto tap = manager_->Tie(watch_.netns.get(), net1, kUid);
  ASSERT_TRUE(tap.ok()) << tap.status();
  EXPECT_EQ(tap->tap, "net1");
  EXPECT_THAT(pod_.Run("ip -o link"), Not(HasSubstr(TapName(net1.index))));
  // What arrives there, arrives at the descriptor, behind a header of virtio.
  node_.Run("ip addr add 10.67.0.1/24 dev up1; bash -c 'echo > /dev/udp/10.67.0.2/9'");
  std::vector<unsigned char> frame(2000);
  bool arp = false;
  pollfd p = {.fd = tap->fd.get(), .events = POLLIN, .revents = 0};
  while (!arp && ::poll(&p, 1, 5000) == 1) {
    const ssize_t size = ::read(p.fd, frame.data(), frame.size());
    arp = size > 24 && frame[10 + 12] == 0x08 && frame[10 + 13] == 0x06;
  }
  EXPECT_TRUE(arp);
}

// A program on the host, as a VPN or a user-mode network is, that holds the other end.
TEST_F(LiveRootTest, ATapThatSomebodyServesIsTied) {
  auto holder = RunInNetns(watch_.netns.get(), []() -> absl::StatusOr<int> {
    const int tap = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    ifreq request = {};
    std::strncpy(request.ifr_name, "net1", IFNAMSIZ - 1);
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    if (::ioctl(tap, TUNSETIFF, &request) != 0) return absl::InternalError("TUNSETIFF");
    return tap;
  });
  ASSERT_TRUE(holder.ok()) << holder.status();
  UniqueFd other(*holder);
  pod_.Run("ip addr add 10.67.0.2/24 dev net1; ip link set net1 up");
  const PodInterface net1 = Read().interfaces.at(1);
  auto tap = manager_->Tie(watch_.netns.get(), net1, kUid);
  ASSERT_TRUE(tap.ok()) << tap.status();
  std::vector<char> frame(64, '\x5a');
  ASSERT_EQ(::write(other.get(), frame.data(), frame.size()), 64);
  pollfd p = {.fd = tap->fd.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&p, 1, 5000), 1);
  std::vector<char> got(2000);
  EXPECT_EQ(::read(p.fd, got.data(), got.size()), 64 + 10);
  // When its holder ends, it stays what it is until it is gone.
  EXPECT_TRUE(manager_->Untie(watch_.netns.get(), net1.index, kUid).ok());
  pod_.Run("ip tuntap add net2 mode tap; ip link set net2 up");
  const PodState state = Read();
  ASSERT_THAT(state.refused, SizeIs(1));
  EXPECT_THAT(std::string(state.refused[0].status.message()), HasSubstr("net2: nobody holds"));
}

}  // namespace
}  // namespace magnetar::daemon
