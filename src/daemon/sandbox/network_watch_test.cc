#include "src/daemon/sandbox/network_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

PodState Pod(const std::vector<int>& indices) {
  PodState state;
  for (const int index : indices) {
    PodInterface interface {
      .index = index, .name = absl::StrCat("net", index),
      .mac = absl::StrCat("02:00:00:00:00:0", index), .mtu = 1500, .tied = false
    };
    auto& guest = *state.guest.add_interfaces();
    guest.set_name(interface.name);
    guest.set_mac(interface.mac);
    state.interfaces.push_back(std::move(interface));
  }
  return state;
}

class NetworkWatchTest : public testing::Test {
 protected:
  NetworkWatchTest() {
    EXPECT_TRUE(world_.Create("a").ok());
    sandbox_ = world_.Get("a");
  }
  ~NetworkWatchTest() override { sandbox_.reset(); }

  void Start() {
    EXPECT_TRUE(world_.Await(sandbox_, sandbox_->Start()).ok());
    // It looks once by itself: at what has changed since its VM was planned.
    world_.WaitFor("network.read");
  }
  void Finish() {
    EXPECT_TRUE(world_.Await(sandbox_, sandbox_->Shutdown()).ok());
    EXPECT_THAT(world_.Residues(), IsEmpty());
  }
  void Recover() {
    EXPECT_TRUE(world_.Await(world_.manager().Recover()).ok());
    world_.Await(world_.manager().RecoverGuests());
  }
  std::map<std::string, std::string> Nics() {
    auto look = [](FakeWorld* world,
                   std::string directory) -> Co<std::map<std::string, std::string>> {
      co_return world->Nics(directory);
    };
    return world_.Await(look(&world_, world_.Directory("a")));
  }
  // The interfaces of the pod that are there from now on, and known to be.
  void Become(const std::vector<int>& indices) {
    world_.ChangePod([&](PodState& pod) {
      PodState next = Pod(indices);
      next.taps = pod.taps;
      for (PodInterface& interface : next.interfaces) {
        interface.tied = pod.taps.contains(interface.index);
      }
      pod = std::move(next);
    });
    world_.Announce();
  }

  FakeWorld world_;
  std::shared_ptr<Sandbox> sandbox_;
};

TEST_F(NetworkWatchTest, AnInterfaceComesAndGoes) {
  Start();
  Become({2, 3});
  world_.WaitFor("agent.network");
  EXPECT_THAT(Nics(), SizeIs(2));
  EXPECT_THAT(sandbox_->record().nics, SizeIs(2));
  EXPECT_EQ(world_.told().interfaces_size(), 2);
  Become({3});
  world_.WaitFor("agent.network", 2);
  EXPECT_THAT(Nics(), testing::ElementsAre(testing::Pair("nic1", "02:00:00:00:00:03")));
  EXPECT_EQ(world_.told().interfaces_size(), 1);
  EXPECT_THAT(world_.pod().taps, SizeIs(1));
  ASSERT_THAT(sandbox_->record().nics, SizeIs(1));
  EXPECT_EQ(sandbox_->record().nics[0].interface, 3);
  Finish();
}

TEST_F(NetworkWatchTest, ManyEventsAreOneChange) {
  Start();
  world_.Hold("vm.add_nic");
  Become({2});
  world_.WaitFor("vm.add_nic");
  const int before = world_.Count("network.read");
  for (int i = 0; i < 100; ++i) world_.Announce();
  world_.Release();
  world_.WaitFor("network.read", before + 2);
  world_.WaitFor("agent.network");
  EXPECT_EQ(world_.Count("vm.add_nic"), 1);
  // One more look for all of them, beside the one after the change itself.
  Finish();
  EXPECT_LE(world_.Count("network.read"), before + 3);
}

TEST_F(NetworkWatchTest, WhatIsAsToldIsNotToldAgain) {
  Start();
  const int before = world_.Count("network.read");
  world_.Announce();
  world_.WaitFor("network.read", before + 1);
  Finish();
  EXPECT_EQ(world_.Count("agent.network"), 0);
}

TEST_F(NetworkWatchTest, ANicThatCannotBePluggedInLeavesNothing) {
  Start();
  world_.Fail("vm.add_nic", absl::InternalError("no"));
  Become({2});
  world_.WaitFor("network.untie");
  world_.WaitFor("agent.network");
  world_.WaitFor("network.untie");
  EXPECT_EQ(world_.told().interfaces_size(), 0);
  world_.Heal();
  // Tried again without another event.
  world_.WaitFor("agent.network", 2);
  EXPECT_THAT(Nics(), SizeIs(1));
  EXPECT_THAT(world_.pod().taps, SizeIs(1));
  Finish();
}

TEST_F(NetworkWatchTest, ANicThatTheGuestKeepsGoesWhenItLetsGo) {
  Start();
  Become({2});
  world_.WaitFor("agent.network");
  world_.Fail("vm.remove_nic", absl::DeadlineExceededError("the guest does not let go of it"));
  Become({});
  world_.WaitFor("agent.network", 2);
  EXPECT_THAT(world_.pod().taps, IsEmpty());
  ASSERT_THAT(sandbox_->record().nics, SizeIs(1));
  EXPECT_FALSE(sandbox_->record().nics[0].plugged);
  world_.Heal();
  world_.DeleteDevice("a", "nic0");
  world_.WaitFor("agent.network", 3);
  EXPECT_THAT(sandbox_->record().nics, IsEmpty());
  Become({3});
  world_.WaitFor("agent.network", 4);
  EXPECT_THAT(Nics(), testing::ElementsAre(testing::Pair("nic0", "02:00:00:00:00:03")));
  Finish();
}

TEST_F(NetworkWatchTest, ADaemonThatWasAwayFollows) {
  Start();
  Become({2, 3});
  world_.WaitFor("agent.network");
  sandbox_.reset();
  world_.Restart();
  Become({3, 4});
  Recover();
  sandbox_ = world_.Get("a");
  world_.WaitFor("agent.network", 2);
  EXPECT_THAT(Nics(), testing::ElementsAre(testing::Pair("nic0", "02:00:00:00:00:04"),
                                           testing::Pair("nic1", "02:00:00:00:00:03")));
  EXPECT_THAT(world_.pod().taps, SizeIs(2));
  Finish();
}

TEST_F(NetworkWatchTest, ADaemonThatDiedAtItDoesItAgain) {
  Start();
  world_.Hold("vm.add_nic");
  Become({2});
  world_.WaitFor("vm.add_nic");
  sandbox_.reset();
  world_.Restart();
  Recover();
  sandbox_ = world_.Get("a");
  world_.WaitFor("agent.network");
  // What it may have left was taken away first.
  EXPECT_EQ(world_.Count("vm.remove_nic"), 1);
  EXPECT_THAT(Nics(), SizeIs(1));
  EXPECT_THAT(sandbox_->record().nics, SizeIs(1));
  Finish();
}

TEST_F(NetworkWatchTest, AStopWaitsForWhatIsInFlight) {
  Start();
  world_.Hold("network.tie");
  Become({2});
  world_.WaitFor("network.tie");
  auto stop = world_.Begin(sandbox_, sandbox_->Stop());
  world_.WaitFor("vm.quit");
  EXPECT_EQ(world_.Count("network.detach"), 0);
  world_.Release();
  EXPECT_TRUE(stop.get().ok());
  EXPECT_EQ(world_.Count("network.detach"), 1);
  Finish();
}

TEST_F(NetworkWatchTest, MtusAreFollowedInPlaceWhereTheyCanBe) {
  Start();
  Become({2});
  world_.WaitFor("agent.network");
  world_.ChangePod([](PodState& pod) {
    pod.taps[pod.interfaces[0].index] = 1500;
    pod.interfaces[0].mtu = 1400;
    pod.guest.mutable_interfaces(0)->set_mtu(1400);
  });
  world_.Announce();
  world_.WaitFor("agent.network", 2);
  EXPECT_EQ(world_.Count("network.mtu"), 1);
  EXPECT_EQ(world_.Count("vm.remove_nic"), 0);
  world_.ChangePod([](PodState& pod) { pod.interfaces[0].mtu = 9000; });
  world_.Announce();
  world_.WaitFor("vm.add_nic", 2);
  EXPECT_EQ(world_.Count("vm.remove_nic"), 1);
  // The new one is set up, though nothing of what the guest is told has changed.
  world_.WaitFor("agent.network", 3);
  Finish();
}

TEST_F(NetworkWatchTest, ANetnsThatCannotBeWatchedIsNoReasonToFail) {
  world_.Fail("network.watch", absl::NotFoundError("gone"));
  EXPECT_TRUE(world_.Await(sandbox_, sandbox_->Start()).ok());
  world_.WaitFor("network.watch");
  Finish();
}

}  // namespace
}  // namespace magnetar::daemon
