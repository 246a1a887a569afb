#include "src/daemon/network/traffic.h"

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/tc_act/tc_mirred.h>
#include <netlink/netlink.h>
#include <netlink/route/act/mirred.h>
#include <netlink/route/action.h>
#include <netlink/route/classifier.h>
#include <netlink/route/cls/u32.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/tc.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/daemon/network/netlink.h"

namespace magnetar::daemon {
namespace {

using Qdisc = std::unique_ptr<rtnl_qdisc, NlFree<rtnl_qdisc_put>>;
using Classifier = std::unique_ptr<rtnl_cls, NlFree<rtnl_cls_put>>;
using Action = std::unique_ptr<rtnl_act, NlFree<rtnl_act_put>>;

constexpr uint32_t kIngressHandle = TC_H_MAKE(TC_H_INGRESS, 0);

absl::StatusOr<Qdisc> IngressQdisc(int index) {
  Qdisc qdisc(::rtnl_qdisc_alloc());
  if (qdisc == nullptr) return absl::ResourceExhaustedError("no memory for a qdisc");
  rtnl_tc* tc = TC_CAST(qdisc.get());
  ::rtnl_tc_set_ifindex(tc, index);
  ::rtnl_tc_set_parent(tc, TC_H_INGRESS);
  ::rtnl_tc_set_handle(tc, kIngressHandle);
  MAGNETAR_RETURN_IF_ERROR(NlStatus(::rtnl_tc_set_kind(tc, "ingress"), "set kind ingress"));
  return qdisc;
}

absl::StatusOr<Action> RedirectTo(int index) {
  Action action(::rtnl_act_alloc());
  if (action == nullptr) return absl::ResourceExhaustedError("no memory for an action");
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(::rtnl_tc_set_kind(TC_CAST(action.get()), "mirred"), "set kind mirred"));
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(::rtnl_mirred_set_action(action.get(), TCA_EGRESS_REDIR), "set redirect"));
  MAGNETAR_RETURN_IF_ERROR(NlStatus(
      ::rtnl_mirred_set_ifindex(action.get(), static_cast<uint32_t>(index)), "set target"));
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(::rtnl_mirred_set_policy(action.get(), TC_ACT_STOLEN), "set policy"));
  return action;
}

}  // namespace

absl::Status RedirectIngress(nl_sock* socket, int from, int to, absl::string_view name) {
  auto qdisc = IngressQdisc(from);
  if (!qdisc.ok()) return qdisc.status();
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(::rtnl_qdisc_add(socket, qdisc->get(), NLM_F_CREATE | NLM_F_EXCL),
               absl::StrCat("add an ingress qdisc to ", name)));

  Classifier filter(::rtnl_cls_alloc());
  if (filter == nullptr) return absl::ResourceExhaustedError("no memory for a filter");
  rtnl_tc* tc = TC_CAST(filter.get());
  ::rtnl_tc_set_ifindex(tc, from);
  ::rtnl_tc_set_parent(tc, kIngressHandle);
  MAGNETAR_RETURN_IF_ERROR(NlStatus(::rtnl_tc_set_kind(tc, "u32"), "set kind u32"));
  ::rtnl_cls_set_prio(filter.get(), kRedirectPriority);
  ::rtnl_cls_set_protocol(filter.get(), ETH_P_ALL);
  // A key with an empty mask matches everything.
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(::rtnl_u32_add_key_uint32(filter.get(), 0, 0, 0, 0), "match everything"));
  MAGNETAR_RETURN_IF_ERROR(NlStatus(::rtnl_u32_set_cls_terminal(filter.get()), "set terminal"));
  auto action = RedirectTo(to);
  if (!action.ok()) return action.status();
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(::rtnl_u32_add_action(filter.get(), action->get()), "add action"));
  return NlStatus(::rtnl_cls_add(socket, filter.get(), NLM_F_CREATE | NLM_F_EXCL),
                  absl::StrCat("redirect what arrives on ", name));
}

absl::Status RemoveIngress(nl_sock* socket, int index, absl::string_view name) {
  auto qdisc = IngressQdisc(index);
  if (!qdisc.ok()) return qdisc.status();
  const int error = ::rtnl_qdisc_delete(socket, qdisc->get());
  absl::Status status = NlStatus(error, absl::StrCat("remove the ingress qdisc of ", name));
  // The kernel answers EINVAL or ENOENT where there is none.
  if (error == -NLE_INVAL || absl::IsNotFound(status)) return absl::OkStatus();
  return status;
}

}  // namespace magnetar::daemon
