/* The first thing that runs: puts the loader and the interpreter where no path leads, and becomes them.
 *
 * It stands at the start of the one file. Behind it lie an index, the runtime (loader, interpreter, libraries, each at a
 * page) and the archive of modules. No C library: it must not read one's files, and shall be small and the same bytes
 * with every build. What it does, in order:
 *
 *   1. It opens itself, and drops from the environment what steers a loader, a C library, OpenSSL or Python.
 *   2. Where an old seccomp profile answers clone3 with EPERM it adds a filter that says ENOSYS: glibc then uses clone.
 *   3. For each stage it copies the runtime and executes the loader: `memfd` (anonymous memory), `tmpfs` (a mount that is
 *      attached to no path; CAP_SYS_ADMIN, Linux 5.2), `dir` (files without a name on /dev/shm or /run).
 *
 * None of them leaves a name behind, whatever ends the process. IMPOUND_STAGE names the stages to try, with commas.
 * It ends with 70 where nothing can be executed. Numbers of system calls and structures: Linux UAPI headers.
 */
#include <stddef.h>
#include <stdint.h>

#include "system.h"

#define PAGE 4096
#define MAX_ENTRIES 24
#define MAX_ENVIRONMENT 4096
#define EXIT_UNUSABLE 70

enum kind { LIBRARY = 1, LOADER = 2, PROGRAM = 4 };

struct entry {
    char name[40];
    uint64_t offset, size;
    uint32_t kind, unused;
};

struct index {
    char magic[8];
    uint32_t count, size; /* of the whole file */
    struct entry entries[MAX_ENTRIES];
};

/* The build writes the offset of the index behind the mark. */
static volatile struct {
    char mark[16];
    uint64_t offset;
} place = {"@IMPOUND-INDEX@", 0};

static union {
    struct index index;
    char bytes[PAGE];
} page;

/* -- texts ------------------------------------------------------------------------------------------------------- */

struct text {
    char *at;
    size_t size, used;
};

static void add(struct text *to, const char *what) {
    for (; *what && to->used + 1 < to->size; what++) to->at[to->used++] = *what;
    to->at[to->used] = 0;
}

static void add_number(struct text *to, long number) {
    char digits[24];
    int at = sizeof digits;
    unsigned long left = number < 0 ? -(unsigned long)number : (unsigned long)number;
    digits[--at] = 0;
    do digits[--at] = (char)('0' + left % 10);
    while (left /= 10);
    if (number < 0) digits[--at] = '-';
    add(to, digits + at);
}

static int begins(const char *text, const char *with) {
    while (*with)
        if (*text++ != *with++) return 0;
    return 1;
}

static void say(const char *what, const char *which, long error) {
    char line[256];
    struct text text = {line, sizeof line, 0};
    add(&text, "impound: ");
    add(&text, what);
    add(&text, which);
    if (error < 0) {
        add(&text, ": error ");
        add_number(&text, -error);
    }
    add(&text, "\n");
    sys_write(2, line, text.used);
}

/* -- environment -------------------------------------------------------------------------------------------------- */

/* By their beginnings. What the loader and the C library take from it (ld.so(8), and what glibc itself drops for
 * set-user-ID programs), OpenSSL, Python; and what names a place for temporary files or another time zone's file. */
static const char *const dropped[] = {
    "LD_",        "GLIBC_TUNABLES", "MALLOC_",  "GCONV_PATH",     "GETCONF_DIR", "HOSTALIASES", "LOCALDOMAIN",
    "LOCPATH",    "NIS_PATH",       "NLSPATH",  "RESOLV_",        "RES_OPTIONS", "TMPDIR",      "TZ",
    "OPENSSL_",   "SSL_CERT_",      "SSLKEYLOGFILE",              "PYTHON",      "IMPOUND_BOOT", NULL,
};

static int is_dropped(const char *variable) {
    for (int at = 0; dropped[at]; at++)
        if (begins(variable, dropped[at])) return 1;
    return 0;
}

static const char *value_of(char **environment, const char *name_and_sign) {
    for (; *environment; environment++)
        if (begins(*environment, name_and_sign)) {
            const char *value = *environment;
            while (*name_and_sign++) value++;
            return value;
        }
    return NULL;
}

/* -- an old seccomp profile --------------------------------------------------------------------------------------- */

struct instruction {
    uint16_t code;
    uint8_t yes, no;
    uint32_t k;
};

static void make_clone3_unknown(void) {
    /* struct seccomp_data: nr at 0, arch at 4. */
    static const struct instruction filter[] = {
        {0x20, 0, 0, 4},            /* load arch */
        {0x15, 0, 3, AUDIT_ARCH},   /* this one? else allow */
        {0x20, 0, 0, 0},            /* load nr */
        {0x15, 0, 1, NR_clone3},    /* clone3? else allow */
        {0x06, 0, 0, 0x00050000 | ENOSYS},
        {0x06, 0, 0, 0x7fff0000},
    };
    const struct {
        uint16_t size;
        const struct instruction *filter;
    } program = {sizeof filter / sizeof *filter, filter};
    if (sys_clone3(NULL, 0) != -EPERM) return; /* EINVAL and ENOSYS are as they should be */
    /* With CAP_SYS_ADMIN it goes without the bit, which would take their powers from programs that children start. */
    if (sys_seccomp(1, 0, &program) == 0) return;
    sys_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    long error = sys_seccomp(1, 0, &program);
    if (error < 0) say("clone3 is refused and cannot be hidden: threads may not start", "", error);
}

/* -- stages ------------------------------------------------------------------------------------------------------- */

enum stage { MEMFD, TMPFS, DIRECTORY, STAGES };
static const char *const stage_names[STAGES] = {"memfd", "tmpfs", "dir"};

static long detached_tmpfs(void) {
    long context = sys_fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (context < 0) return context;
    long mount = sys_fsconfig((int)context, FSCONFIG_SET_STRING, "mode", "0700", 0);
    if (mount >= 0) mount = sys_fsconfig((int)context, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    if (mount >= 0) mount = sys_fsmount((int)context, 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    sys_close((int)context);
    return mount;
}

static long usable_directory(void) {
    static const char *const places[] = {"/dev/shm", "/run", NULL};
    long error = -ENOENT;
    for (int at = 0; places[at]; at++) {
        struct statfs about;
        long directory = sys_open(places[at], O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (directory < 0) {
            error = directory;
            continue;
        }
        error = sys_fstatfs((int)directory, &about);
        if (error >= 0 && (about.f_flags & (ST_NOEXEC | ST_RDONLY))) error = -EACCES;
        /* Memory only: a disk would be written to. */
        if (error >= 0 && about.f_type != TMPFS_MAGIC) error = -EINVAL;
        if (error >= 0) return directory;
        sys_close((int)directory);
    }
    return error;
}

/* A file without a name that can be executed, and is closed with this process and its children: its descriptor. */
static long nameless(enum stage stage, int directory, const char *name, const struct entry *entry, int self) {
    long fd;
    if (stage == MEMFD) {
        fd = sys_memfd_create(name, MFD_EXEC);
        if (fd == -EINVAL) fd = sys_memfd_create(name, 0); /* before 6.3 */
    } else {
        fd = sys_openat(directory, ".", O_TMPFILE | O_RDWR, 0700);
    }
    if (fd < 0) return fd;
    int64_t offset = (int64_t)entry->offset;
    for (uint64_t left = entry->size; left;) {
        long sent = sys_sendfile((int)fd, self, &offset, left > 1 << 30 ? 1 << 30 : left);
        if (sent <= 0) {
            sys_close((int)fd);
            return sent ? sent : -EIO;
        }
        left -= (uint64_t)sent;
    }
    if (stage == MEMFD) return fd;
    /* What is open for writing cannot be executed. */
    char path[40];
    struct text text = {path, sizeof path, 0};
    add(&text, "/proc/self/fd/");
    add_number(&text, fd);
    long readable = sys_open(path, O_RDONLY);
    sys_close((int)fd);
    return readable;
}

struct ready {
    int loader, program;
    char preload[MAX_ENTRIES * 20];
};

static long make_ready(enum stage stage, int directory, int self, struct ready *ready) {
    struct text preload = {ready->preload, sizeof ready->preload, 0};
    ready->loader = ready->program = -1;
    for (uint32_t at = 0; at < page.index.count; at++) {
        const struct entry *entry = &page.index.entries[at];
        long fd = nameless(stage, directory, entry->name, entry, self);
        if (fd < 0) return fd;
        if (entry->kind == LOADER) ready->loader = (int)fd;
        if (entry->kind == PROGRAM) ready->program = (int)fd;
        if (entry->kind == LIBRARY) {
            if (preload.used) add(&preload, ":");
            add(&preload, "/proc/self/fd/");
            add_number(&preload, fd);
        }
    }
    return 0;
}

static void give_up(int first) {
    for (int fd = first; fd < first + MAX_ENTRIES + 4; fd++) sys_close(fd);
}

static int is_chosen(const char *list, const char *name) {
    if (!list || !*list) return 1;
    while (*list) {
        const char *end = name;
        while (*list && *list == *end) list++, end++;
        if (!*end && (*list == ',' || !*list)) return 1;
        while (*list && *list != ',') list++;
        if (*list) list++;
    }
    return 0;
}

/* -- the whole of it ---------------------------------------------------------------------------------------------- */

static char *environment[MAX_ENVIRONMENT + 2];

static void keep_environment(char **given) {
    int kept = 1; /* the first is for the interpreter */
    for (; *given && kept < MAX_ENVIRONMENT; given++)
        if (!is_dropped(*given)) environment[kept++] = *given;
    environment[kept] = NULL;
    if (*given) say("too many variables in the environment: goes on without the last of them", "", 0);
}

static void open_standard_descriptors(void) {
    for (int fd = 0; fd < 3; fd++)
        if (sys_fcntl(fd, F_GETFD, 0) == -EBADF && sys_open("/dev/null", O_RDWR) < 0)
            sys_memfd_create("nothing", 0); /* the lowest number that is free, so this one */
}

static long open_self(void) {
    long fd = sys_open("/proc/self/exe", O_RDONLY);
    if (fd < 0) {
        say("cannot read itself from /proc, which must be mounted", "", fd);
        return fd;
    }
    char last;
    if (sys_pread((int)fd, page.bytes, PAGE, (int64_t)place.offset) != PAGE || !begins(page.bytes, "IMPOUND1") ||
        !page.index.count || page.index.count > MAX_ENTRIES || sys_pread((int)fd, &last, 1, page.index.size - 1L) != 1) {
        say("the file is damaged or cut: fetch it again and check its SHA-256", "", 0);
        return -EIO;
    }
    for (uint32_t at = 0; at < page.index.count; at++) page.index.entries[at].name[39] = 0;
    return fd;
}

__attribute__((used, noreturn)) void begin(long *stack) {
    long argc = stack[0];
    char **argv = (char **)(stack + 1), **given = argv + argc + 1;
    static char boot[64], program[40];
    static struct ready ready;
    open_standard_descriptors();
    long self = open_self();
    if (self < 0) sys_exit(EXIT_UNUSABLE);
    keep_environment(given);
    make_clone3_unknown();
    const char *chosen = value_of(given, "IMPOUND_STAGE=");
    long error = -EINVAL, tried = 0;
    for (int stage = 0; stage < STAGES; stage++) {
        if (!is_chosen(chosen, stage_names[stage])) continue;
        tried = 1;
        long directory = stage == TMPFS ? detached_tmpfs() : stage == DIRECTORY ? usable_directory() : -1;
        error = stage == MEMFD || directory >= 0 ? make_ready(stage, (int)directory, (int)self, &ready) : directory;
        if (error >= 0) {
            struct text text = {boot, sizeof boot, 0};
            add(&text, "IMPOUND_BOOT=");
            add(&text, stage_names[stage]);
            add(&text, ",");
            add_number(&text, self);
            add(&text, ",");
            add_number(&text, directory);
            environment[0] = boot;
            text = (struct text){program, sizeof program, 0};
            add(&text, "/proc/self/fd/");
            add_number(&text, ready.program);
            /* The stack has room for as many as it was given, and a few more. */
            char *arguments[argc + 12];
            int used = 0;
            arguments[used++] = "impound";
            arguments[used++] = "--inhibit-cache";
            arguments[used++] = "--library-path";
            arguments[used++] = "/proc/self/fd/none";
            arguments[used++] = "--preload";
            arguments[used++] = ready.preload;
            arguments[used++] = "--argv0";
            arguments[used++] = argc ? argv[0] : "impound";
            arguments[used++] = program;
            for (long at = 1; at < argc; at++) arguments[used++] = argv[at];
            arguments[used] = NULL;
            error = sys_execveat(ready.loader, "", arguments, environment, AT_EMPTY_PATH);
            if (error == -ENOSYS) { /* before 3.19 */
                static char loader[40];
                text = (struct text){loader, sizeof loader, 0};
                add(&text, "/proc/self/fd/");
                add_number(&text, ready.loader);
                error = sys_execve(loader, arguments, environment);
            }
        }
        if (chosen && *chosen) say("it cannot run by way of ", stage_names[stage], error);
        give_up((int)self + 1);
    }
    if (!tried) {
        say("IMPOUND_STAGE names none of memfd, tmpfs, dir: ", chosen, 0);
        sys_exit(EXIT_UNUSABLE);
    }
    say("there is no way to run here: anonymous memory, a private tmpfs, /dev/shm and /run are refused", "", error);
    sys_exit(EXIT_UNUSABLE);
}
