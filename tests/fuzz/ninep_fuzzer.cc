// The server of 9p: whatever a guest sends, each answer belongs to its request and is no longer
// than agreed on, and nothing beside the shared directory changes.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "magnetar/unique_fd.h"
#include "src/ninep/session.h"

namespace {

namespace fs = std::filesystem;
using magnetar::UniqueFd;
using magnetar::ninep::Descriptors;
using magnetar::ninep::Reader;
using magnetar::ninep::Session;

// The directory that is served, with something that is not beside it.
class Place {
 public:
  Place() {
    char name[] = "/tmp/ninep-fuzzer.XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    top_ = name;
    std::ofstream(top_ / "beside") << "untouched";
    Fill();
  }
  ~Place() { fs::remove_all(top_); }

  void Fill() {
    fs::remove_all(root());
    fs::create_directories(root() / "d");
    std::ofstream(root() / "d" / "file") << "contents";
    fs::create_symlink("../beside", root() / "out");
  }
  fs::path root() const { return top_ / "root"; }

  void Check() const {
    std::ifstream file(top_ / "beside");
    std::string text;
    std::getline(file, text);
    const auto entries = std::distance(fs::directory_iterator(top_), fs::directory_iterator());
    if (text != "untouched" || entries != 2) std::abort();
  }

 private:
  fs::path top_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Place place;
  place.Fill();
  Session session(UniqueFd(::open(place.root().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)),
                  Descriptors("/proc/self/fd/"));
  std::string_view stream(reinterpret_cast<const char*>(data), size);
  while (stream.size() >= magnetar::ninep::kHeaderBytes) {
    Reader in(stream);
    const uint32_t length = std::max(in.U32(), magnetar::ninep::kHeaderBytes);
    const uint8_t type = in.U8();
    const uint16_t tag = in.U16();
    const std::string_view message = stream.substr(0, length);
    stream.remove_prefix(message.size());
    const std::string answer = session.Answer(message);
    Reader out(answer);
    if (out.U32() != answer.size() || answer.size() > session.message_bytes()) std::abort();
    const uint8_t answered = out.U8();
    if (answered != magnetar::ninep::kRlerror && answered != type + 1) std::abort();
    if (out.U16() != tag) std::abort();
  }
  place.Check();
  return 0;
}
