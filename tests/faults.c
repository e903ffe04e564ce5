/* A disk that fails and a clock that jumps, while a process runs.
 *
 * Preload it (LD_PRELOAD). FAULTS names a file of eight 64-bit integers, which is mapped and read at every call, so that another
 * process (tests/faults.py) can change them at any time; 0 is no fault. The first five are for files whose path begins with FAULTS_PATH:
 *
 *   0  errno of write, pwrite and ftruncate      3  errno of read and pread
 *   1  errno of fsync and fdatasync              4  microseconds that fsync and fdatasync take longer
 *   2  errno of open for writing, and unlink     5  nanoseconds that CLOCK_REALTIME is ahead
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WRITE, SYNC, OPEN, READ, DELAY, AHEAD, COUNT = 8, DESCRIPTORS = 65536 };

static const char *prefix;
static volatile int64_t none[COUNT], *fault = none;
static char tracked[DESCRIPTORS];

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *control = getenv("FAULTS");
    prefix = getenv("FAULTS_PATH");
    int fd = control ? REAL(open)(control, O_RDONLY | O_CLOEXEC) : -1;
    void *found = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) fault = found;
    if (fd >= 0) REAL(close)(fd);
}

static int mine(const char *path) { return prefix && path && strncmp(path, prefix, strlen(prefix)) == 0; }

static int fails(int fd, int kind) {
    if (fd < 0 || fd >= DESCRIPTORS || !tracked[fd] || !fault[kind]) return 0;
    errno = (int)fault[kind];
    return 1;
}

static int refused(const char *path, int flags) {
    if (!fault[OPEN] || !mine(path) || (flags & O_ACCMODE) == O_RDONLY) return 0;
    errno = (int)fault[OPEN];
    return 1;
}

static int opened(int fd, const char *path) {
    if (fd >= 0 && fd < DESCRIPTORS) tracked[fd] = (char)mine(path);
    return fd;
}

#define OPENS(name)                                          \
    int name(const char *path, int flags, ...) {             \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        mode_t mode = va_arg(rest, mode_t);                  \
        va_end(rest);                                        \
        if (refused(path, flags)) return -1;                 \
        return opened(REAL(name)(path, flags, mode), path);  \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                           \
    int name(int at, const char *path, int flags, ...) {         \
        va_list rest;                                            \
        va_start(rest, flags);                                   \
        mode_t mode = va_arg(rest, mode_t);                      \
        va_end(rest);                                            \
        if (refused(path, flags)) return -1;                     \
        return opened(REAL(name)(at, path, flags, mode), path);  \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

int close(int fd) {
    if (fd >= 0 && fd < DESCRIPTORS) tracked[fd] = 0;
    return REAL(close)(fd);
}

int unlink(const char *path) {
    if (refused(path, O_RDWR)) return -1;
    return REAL(unlink)(path);
}

ssize_t write(int fd, const void *data, size_t size) { return fails(fd, WRITE) ? -1 : REAL(write)(fd, data, size); }
ssize_t read(int fd, void *data, size_t size) { return fails(fd, READ) ? -1 : REAL(read)(fd, data, size); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    return fails(fd, WRITE) ? -1 : REAL(pwrite64)(fd, data, size, place);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t place) {
    return fails(fd, READ) ? -1 : REAL(pread64)(fd, data, size, place);
}
ssize_t pwrite_plain(int fd, const void *data, size_t size, off_t place) __asm__("pwrite");
ssize_t pwrite_plain(int fd, const void *data, size_t size, off_t place) { return pwrite64(fd, data, size, place); }
ssize_t pread_plain(int fd, void *data, size_t size, off_t place) __asm__("pread");
ssize_t pread_plain(int fd, void *data, size_t size, off_t place) { return pread64(fd, data, size, place); }
int ftruncate(int fd, off_t length) { return fails(fd, WRITE) ? -1 : REAL(ftruncate)(fd, length); }
int ftruncate64(int fd, off64_t length) { return fails(fd, WRITE) ? -1 : REAL(ftruncate64)(fd, length); }

static int slow(int fd) {
    if (fd >= 0 && fd < DESCRIPTORS && tracked[fd] && fault[DELAY]) {
        struct timespec wait = {fault[DELAY] / 1000000, fault[DELAY] % 1000000 * 1000};
        nanosleep(&wait, NULL);
    }
    return fails(fd, SYNC);
}
int fsync(int fd) { return slow(fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return slow(fd) ? -1 : REAL(fdatasync)(fd); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static __typeof__(clock_gettime) *real;
    if (!real) real = REAL(clock_gettime);
    int result = real(clock, now);
    int64_t ahead = fault[AHEAD];
    if (clock == CLOCK_REALTIME && result == 0 && ahead) {
        int64_t nanoseconds = now->tv_nsec + ahead % 1000000000;
        now->tv_sec += ahead / 1000000000 + (nanoseconds >= 1000000000) - (nanoseconds < 0);
        now->tv_nsec = nanoseconds + (nanoseconds < 0) * 1000000000 - (nanoseconds >= 1000000000) * 1000000000;
    }
    return result;
}
