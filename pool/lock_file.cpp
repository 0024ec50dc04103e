#include "lock_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "clock.h"
#include "failure.h"
#include "fork_guard.h"

namespace maru {

namespace {

constexpr size_t kPage = 4096;

struct flock byte_range(short type, uint64_t byte) {
  struct flock range{};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_start = static_cast<off_t>(byte);
  range.l_len = 1;
  return range;
}

bool take(int fd, uint64_t byte) {
  struct flock range = byte_range(F_WRLCK, byte);
  return fcntl(fd, F_OFD_SETLK, &range) == 0;
}

}  // namespace

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

LockFile::LockFile(std::string path, bool create, uint32_t mode) : path_(std::move(path)) {
  const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0);
  Descriptor fd(::open(path_.c_str(), flags, mode));
  if (!fd) {
    const int error = errno;
    const char* kind = error == ENOENT ? "PoolNotFound" : error == ENOSPC ? "NoSpace" : "PoolMismatch";
    throw Failure(kind, "cannot open " + path_ + ": " + std::strerror(error), {{"path", path_}});
  }
  struct stat st{};
  if (fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode))
    throw Failure("PoolMismatch", path_ + " is not a regular file", {{"path", path_}});
  if (create) (void)::fchmod(fd.get(), mode);
  device_ = st.st_dev;
  inode_ = st.st_ino;
}

Descriptor LockFile::open_current() const {
  Descriptor fd(::open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  struct stat st{};
  if (!fd || fstat(fd.get(), &st) != 0 || st.st_dev != device_ || st.st_ino != inode_) return Descriptor();
  return fd;
}

bool LockFile::is_current() const { return static_cast<bool>(open_current()); }

Descriptor LockFile::try_lock(uint64_t byte) const {
  Descriptor fd = open_current();
  if (!fd || !take(fd.get(), byte)) return Descriptor();
  return fd;
}

Descriptor LockFile::lock(uint64_t byte, uint64_t deadline_ns) const {
  for (uint64_t pause = 20'000;; pause = pause < kMillisecond ? pause * 2 : kMillisecond) {
    Descriptor fd = try_lock(byte);
    if (fd || now_ns() >= deadline_ns || !is_current()) return fd;
    sleep_ns(pause);
  }
}

bool LockFile::is_held(uint64_t byte) const {
  Descriptor fd = open_current();
  if (!fd) return true;
  struct flock range = byte_range(F_WRLCK, byte);
  if (fcntl(fd.get(), F_OFD_GETLK, &range) != 0) return true;
  return range.l_type != F_UNLCK;
}

void* LockFile::try_tie(uint64_t byte) const {
  // Between open and close a fork in another thread would give the child a second reference to the
  // description, and the parent's death would go unnoticed; the guard keeps fork out of these few lines.
  ForkGuard no_fork;
  Descriptor fd = open_current();
  if (!fd || !take(fd.get(), byte)) return nullptr;
  void* page = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (page == MAP_FAILED) return nullptr;
  if (madvise(page, kPage, MADV_DONTFORK) != 0) {
    munmap(page, kPage);
    return nullptr;
  }
  return page;
}

void LockFile::untie(void* tied_page) {
  if (tied_page) munmap(tied_page, kPage);
}

}  // namespace maru
