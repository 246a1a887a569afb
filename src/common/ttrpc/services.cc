#include <utility>

#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::ttrpc {

void Services::AddUnary(std::string_view service, std::string_view method, UnaryHandler handler) {
  unary_[{std::string(service), std::string(method)}] = std::move(handler);
}

void Services::AddStream(std::string_view service, std::string_view method, StreamHandler handler) {
  streams_[{std::string(service), std::string(method)}] = std::move(handler);
}

const UnaryHandler* Services::FindUnary(const std::string& service,
                                        const std::string& method) const {
  const auto it = unary_.find({service, method});
  return it == unary_.end() ? nullptr : &it->second;
}

const StreamHandler* Services::FindStream(const std::string& service,
                                          const std::string& method) const {
  const auto it = streams_.find({service, method});
  return it == streams_.end() ? nullptr : &it->second;
}

}  // namespace magnetar::ttrpc
