#include "src/daemon/network/news.h"

#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <cstring>
#include <string>
#include <vector>

namespace magnetar::daemon {
namespace {

// A message about the link `name`; empty: one without a name.
std::string Message(uint16_t type, const std::string& name) {
  const size_t attribute = name.empty() ? 0 : RTA_LENGTH(name.size() + 1);
  std::string out(NLMSG_LENGTH(sizeof(ifinfomsg)) + RTA_ALIGN(attribute), '\0');
  nlmsghdr header = {};
  header.nlmsg_len = static_cast<uint32_t>(out.size());
  header.nlmsg_type = type;
  std::memcpy(out.data(), &header, sizeof(header));
  if (name.empty()) return out;
  rtattr a = {};
  a.rta_type = IFLA_IFNAME;
  a.rta_len = static_cast<unsigned short>(attribute);
  char* at = out.data() + NLMSG_LENGTH(sizeof(ifinfomsg));
  std::memcpy(at, &a, sizeof(a));
  std::memcpy(at + RTA_LENGTH(0), name.c_str(), name.size() + 1);
  return out;
}

PodNews Read(const std::string& messages) { return ReadPodNews(messages.data(), messages.size()); }

TEST(PodNewsTest, WhatBecomesOfOurTapsIsNoneButTheirEnd) {
  EXPECT_EQ(Read(Message(RTM_NEWLINK, "tap2_mgt")), PodNews::kNone);
  EXPECT_EQ(Read(Message(RTM_DELLINK, "tap2_mgt")), PodNews::kUntied);
  EXPECT_EQ(Read(Message(RTM_NEWLINK, "tap2")), PodNews::kChange);
  EXPECT_EQ(Read(Message(RTM_NEWLINK, "net1")), PodNews::kChange);
  EXPECT_EQ(Read(Message(RTM_DELLINK, "net1")), PodNews::kChange);
  EXPECT_EQ(Read(Message(RTM_NEWLINK, "")), PodNews::kChange);
}

TEST(PodNewsTest, QueuesAndFiltersThatGoUntie) {
  for (const uint16_t type : {RTM_DELQDISC, RTM_DELTFILTER}) {
    EXPECT_EQ(Read(Message(type, "")), PodNews::kUntied) << type;
  }
  for (const uint16_t type : {RTM_NEWQDISC, RTM_NEWTFILTER, RTM_NEWTCLASS}) {
    EXPECT_EQ(Read(Message(type, "")), PodNews::kNone) << type;
  }
}

TEST(PodNewsTest, AddressesRoutesAndNeighbours) {
  for (const uint16_t type :
       {RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH}) {
    EXPECT_EQ(Read(Message(type, "")), PodNews::kChange) << type;
  }
  EXPECT_EQ(Read(Message(RTM_NEWRULE, "")), PodNews::kNone);
}

TEST(PodNewsTest, TheWeightiestOfSeveral) {
  const std::string own = Message(RTM_NEWLINK, "tap2_mgt");
  const std::string gone = Message(RTM_DELLINK, "tap2_mgt");
  EXPECT_EQ(Read(own + gone + own), PodNews::kUntied);
  EXPECT_EQ(Read(gone + Message(RTM_NEWADDR, "") + gone), PodNews::kChange);
}

TEST(PodNewsTest, WhatIsCutOffIsNotRead) {
  const std::string whole = Message(RTM_NEWLINK, "net1");
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(ReadPodNews(whole.data(), size), PodNews::kNone) << size;
  }
  // A name that says that it is longer than the message, and one that does not end.
  std::string wrong = Message(RTM_NEWLINK, "tap2_mgt");
  wrong[NLMSG_LENGTH(sizeof(ifinfomsg))] = '\x7f';
  EXPECT_EQ(Read(wrong), PodNews::kChange);
}

}  // namespace
}  // namespace magnetar::daemon
