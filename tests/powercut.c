/* A power cut, modelled: what was written and not synced may be gone, sector by sector.
 *
 * Preload it (LD_PRELOAD) into a process that writes a database. It remembers, for every 512-byte sector of the files whose path
 * begins with POWERCUT_PATH (but for -shm, which lives in memory), what stood there at the last fsync or fdatasync. At the
 * POWERCUT_AFTER-th write or sync it "cuts the power": each sector that was written since is put back with a chance of
 * 100 - POWERCUT_KEEP percent, the file is as long as it was or as it is, and the process is killed.
 *
 * Not modelled: directory entries (the files are there before the load begins) and sectors that tear in themselves.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECTOR = 512, FILES = 32, DESCRIPTORS = 4096 };

typedef struct Saved {
    off_t place;
    size_t length; /* bytes that were there before: less than a sector at the end of the file */
    char before[SECTOR];
    struct Saved *next;
} Saved;

typedef struct {
    char path[400];
    Saved *saved;
    off_t length; /* at the last sync */
} File;

static File files[FILES];
static int file_count, tracked[DESCRIPTORS]; /* descriptor -> file + 1 */
static long after, done_ops;
static int keep = 50;
static unsigned seed = 1;
static const char *prefix;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    prefix = getenv("POWERCUT_PATH");
    if (getenv("POWERCUT_AFTER")) after = atol(getenv("POWERCUT_AFTER"));
    if (getenv("POWERCUT_KEEP")) keep = atoi(getenv("POWERCUT_KEEP"));
    if (getenv("POWERCUT_SEED")) seed = (unsigned)atol(getenv("POWERCUT_SEED"));
}

static int of(int fd) { return fd >= 0 && fd < DESCRIPTORS ? tracked[fd] - 1 : -1; }

static off_t length_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_size : 0;
}

static void opened(int fd, const char *path) {
    size_t size = path ? strlen(path) : 0;
    if (fd < 0 || fd >= DESCRIPTORS || !prefix || strncmp(path, prefix, strlen(prefix)) != 0) return;
    if (size >= sizeof files[0].path || (size > 4 && strcmp(path + size - 4, "-shm") == 0)) return;
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < file_count && strcmp(files[at].path, path) != 0) at++;
    if (at < FILES) {
        if (at == file_count) {
            file_count++;
            memcpy(files[at].path, path, size + 1);
            files[at].length = length_of(fd);
        }
        tracked[fd] = at + 1;
    }
    pthread_mutex_unlock(&lock);
}

static void forget(File *file) {
    while (file->saved) {
        Saved *next = file->saved->next;
        free(file->saved);
        file->saved = next;
    }
}

/* Remember what stands in the sectors that are about to be written. */
static void remember(int fd, File *file, off_t place, size_t size) {
    for (off_t sector = place / SECTOR * SECTOR; sector < place + (off_t)size; sector += SECTOR) {
        Saved *saved = file->saved;
        while (saved && saved->place != sector) saved = saved->next;
        if (saved) continue;
        saved = calloc(1, sizeof *saved);
        if (!saved) abort();
        saved->place = sector;
        ssize_t got = pread(fd, saved->before, SECTOR, sector);
        saved->length = got > 0 ? (size_t)got : 0;
        saved->next = file->saved;
        file->saved = saved;
    }
}

static void cut(void) {
    char shm[600];
    for (int at = 0; at < file_count; at++) {
        File *file = &files[at];
        int fd = REAL(open)(file->path, O_RDWR);
        if (fd < 0) continue;
        for (Saved *saved = file->saved; saved; saved = saved->next) {
            if ((int)(rand_r(&seed) % 100) < keep) continue;
            /* Behind the old end there were no bytes: a file system that had the length but not the data shows zeros. */
            size_t size = SECTOR;
            off_t end = length_of(fd);
            if (saved->place + SECTOR > end) size = end > saved->place ? (size_t)(end - saved->place) : 0;
            if (pwrite(fd, saved->before, size, saved->place) < 0) abort();
        }
        if (file->saved && length_of(fd) != file->length && (int)(rand_r(&seed) % 100) >= keep && REAL(ftruncate)(fd, file->length) < 0) abort();
        REAL(close)(fd);
        strcpy(shm, file->path);
        strcat(shm, "-shm");
        unlink(shm);
    }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count an operation; with the lock held. */
static void count(void) {
    if (after && ++done_ops >= after) cut();
}

static int opened_by(int fd, const char *path) {
    opened(fd, path);
    return fd;
}

#define OPEN(name)                                              \
    int name(const char *path, int flags, ...) {                \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = va_arg(rest, mode_t);                     \
        va_end(rest);                                           \
        return opened_by(REAL(name)(path, flags, mode), path);  \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                \
    int name(int at, const char *path, int flags, ...) {            \
        va_list rest;                                               \
        va_start(rest, flags);                                      \
        mode_t mode = va_arg(rest, mode_t);                         \
        va_end(rest);                                               \
        return opened_by(REAL(name)(at, path, flags, mode), path);  \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    if (of(fd) >= 0) tracked[fd] = 0;
    return REAL(close)(fd);
}

static void before_write(int fd, off_t place, size_t size) {
    File *file = &files[of(fd)];
    count();
    remember(fd, file, place, size);
}

#define PWRITE(name, offset)                                                \
    ssize_t name(int fd, const void *data, size_t size, offset place) {     \
        if (of(fd) < 0) return REAL(name)(fd, data, size, place);           \
        pthread_mutex_lock(&lock);                                          \
        before_write(fd, place, size);                                      \
        ssize_t wrote = REAL(name)(fd, data, size, place);                  \
        pthread_mutex_unlock(&lock);                                        \
        return wrote;                                                       \
    }
PWRITE(pwrite64, off64_t)
#undef pwrite
ssize_t pwrite_plain(int fd, const void *data, size_t size, off_t place) __asm__("pwrite");
ssize_t pwrite_plain(int fd, const void *data, size_t size, off_t place) { return pwrite64(fd, data, size, place); }

ssize_t write(int fd, const void *data, size_t size) {
    if (of(fd) < 0) return REAL(write)(fd, data, size);
    pthread_mutex_lock(&lock);
    before_write(fd, lseek(fd, 0, SEEK_CUR), size);
    ssize_t wrote = REAL(write)(fd, data, size);
    pthread_mutex_unlock(&lock);
    return wrote;
}

#define TRUNCATE(name, offset)                                      \
    int name(int fd, offset length) {                               \
        if (of(fd) < 0) return REAL(name)(fd, length);              \
        pthread_mutex_lock(&lock);                                  \
        off_t now = length_of(fd);                                  \
        before_write(fd, length, now > length ? now - length : 0);  \
        int result = REAL(name)(fd, length);                        \
        pthread_mutex_unlock(&lock);                                \
        return result;                                              \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(name)                                  \
    int name(int fd) {                              \
        if (of(fd) < 0) return REAL(name)(fd);      \
        pthread_mutex_lock(&lock);                  \
        count();                                    \
        int result = REAL(name)(fd);                \
        if (result == 0) {                          \
            forget(&files[of(fd)]);                 \
            files[of(fd)].length = length_of(fd);   \
        }                                           \
        pthread_mutex_unlock(&lock);                \
        return result;                              \
    }
SYNC(fsync)
SYNC(fdatasync)
