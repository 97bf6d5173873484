/* What a process sees from inside a container, one `key value` per line. Static: runs in an empty image.
 *
 * probe [KEY...]      the facts (all, or those named)
 * probe exit N | signal N | hold | read PATH | write PATH | list DIR | try CALL   small deeds, see below */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

extern char **environ;
static char **wanted;

static int want(const char *key)
{
    if (!*wanted)
        return 1;
    for (char **word = wanted; *word; word++)
        if (strcmp(*word, key) == 0)
            return 1;
    return 0;
}

/* Every line of a file, after the key. */
static void lines(const char *key, const char *path)
{
    if (!want(key))
        return;
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t space = 0;
    ssize_t length;
    if (!file)
        printf("%s ! %s\n", key, strerror(errno));
    while (file && (length = getline(&line, &space, file)) > 0)
        printf("%s %.*s\n", key, (int)(line[length - 1] == '\n' ? length - 1 : length), line);
    free(line);
    if (file)
        fclose(file);
}

static void entries(const char *key, const char *path)
{
    if (!want(key))
        return;
    struct dirent **list;
    int count = scandir(path, &list, NULL, alphasort);
    if (count < 0)
        printf("%s ! %s\n", key, strerror(errno));
    for (int i = 0; i < count; i++)
        if (strcmp(list[i]->d_name, ".") && strcmp(list[i]->d_name, ".."))
            printf("%s %s\n", key, list[i]->d_name);
}

static void status(void)
{
    static const char *const keys[] = {"Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
                                       "Seccomp", "Cpus_allowed_list", "Mems_allowed_list", "SigBlk", "SigIgn"};
    char line[4096];
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (!colon)
            continue;
        *colon = 0;
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
            if (strcmp(line, keys[i]) == 0 && want(keys[i]))
                printf("%s %s", keys[i], colon + 1 + strspn(colon + 1, "\t "));
    }
    if (file)
        fclose(file);
}

static void links(void)
{
    static const char *const kinds[] = {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char path[64], to[256] = "", key[32];
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        snprintf(key, sizeof key, "ns-%s", kinds[i]);
        if (want(key) && readlink(path, to, sizeof to - 1) > 0)
            printf("%s %s\n", key, to);
    }
    char path[64], to[4096];
    for (int fd = 0; fd < 256 && want("fd"); fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, to, sizeof to - 1);
        if (length > 0)
            printf("fd %d %.*s\n", fd, (int)length, to);
    }
}

static void facts(void)
{
    struct utsname name;
    uname(&name);
    if (want("pid"))
        printf("pid %d\nppid %d\nsid %d\npgrp %d\n", getpid(), getppid(), getsid(0), getpgrp());
    if (want("uid"))
        printf("uid %d %d\n", getuid(), geteuid());
    if (want("gid"))
        printf("gid %d %d\n", getgid(), getegid());
    if (want("hostname"))
        printf("hostname %s\n", name.nodename);
    if (want("machine"))
        printf("machine %s\n", name.machine);
    char *cwd = get_current_dir_name();
    if (want("cwd"))
        printf("cwd %s\n", cwd ? cwd : strerror(errno));
    for (int fd = 0; fd < 3 && want("tty"); fd++)
        printf("tty %d %s\n", fd, isatty(fd) ? "yes" : "no");
    for (char **word = environ; *word && want("env"); word++)
        printf("env %s\n", *word);
    static const struct { const char *name; int which; } limits[] = {
        {"memlock", RLIMIT_MEMLOCK}, {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"core", RLIMIT_CORE},
        {"stack", RLIMIT_STACK}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits && want("limit"); i++) {
        struct rlimit limit;
        getrlimit(limits[i].which, &limit);
        printf("limit %s %lld %lld\n", limits[i].name, (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
    mode_t mask = umask(0);
    if (want("umask"))
        printf("umask %03o\n", mask);
    status();
    links();
    lines("uid_map", "/proc/self/uid_map");
    lines("gid_map", "/proc/self/gid_map");
    lines("cgroup", "/proc/self/cgroup");
    lines("mount", "/proc/self/mountinfo");
    entries("dev", "/dev");
    entries("root", "/");
}

/* A call that a container must refuse (or allow), with its errno. Where it is allowed nothing changes: what was made
 * is unmade at once, and the names given are those that hold already, since this may run as root outside. */
static int try(const char *call)
{
    int result = -1;
    char name[256] = "", place[] = "/tmp/probe.XXXXXX";
    gethostname(name, sizeof name - 1);
    errno = ENOSYS;
    if (strcmp(call, "mount") == 0) {
        int made = mkdtemp(place) != NULL;
        result = made ? mount("none", place, "tmpfs", 0, "") : -1;
        int why = errno;
        if (result == 0)
            umount2(place, MNT_DETACH);
        if (made)
            rmdir(place);
        errno = why;
    }
    else if (strcmp(call, "chroot") == 0)
        result = chroot("/");
    else if (strcmp(call, "sethostname") == 0)
        result = sethostname(name, strlen(name));
    else if (strcmp(call, "unshare-user") == 0)
        result = unshare(CLONE_NEWUSER);
    else if (strcmp(call, "mknod") == 0)
        result = mknod("/tmp/probe.node", S_IFCHR | 0600, 0x103), result == 0 && unlink("/tmp/probe.node");
    else if (strcmp(call, "setuid") == 0)
        result = setuid(getuid() + 1);
    printf("try %s %s\n", call, result == 0 ? "allowed" : strerror(errno));
    return 0;
}

static int copy(int from, int to)
{
    char buffer[65536];
    ssize_t got;
    while ((got = read(from, buffer, sizeof buffer)) > 0)
        if (write(to, buffer, got) != got)
            return 1;
    return got < 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *deed = argc > 1 ? argv[1] : "", *object = argc > 2 ? argv[2] : "";
    if (strcmp(deed, "exit") == 0)
        return atoi(object);
    if (strcmp(deed, "signal") == 0) {
        signal(atoi(object), SIG_DFL);
        raise(atoi(object));
        return 1;
    }
    if (strcmp(deed, "hold") == 0) { /* says so, then stays until its input ends */
        puts("holding");
        return copy(0, 1);
    }
    if (strcmp(deed, "try") == 0)
        return try(object);
    if (strcmp(deed, "list") == 0) {
        wanted = argv + argc;
        entries("entry", object);
        return 0;
    }
    if (strcmp(deed, "read") == 0 || strcmp(deed, "write") == 0) {
        int reading = deed[0] == 'r';
        int fd = open(object, reading ? O_RDONLY : O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (fd < 0 || (reading ? copy(fd, 1) : copy(0, fd))) {
            printf("%s %s ! %s\n", deed, object, strerror(errno));
            return 1;
        }
        return 0;
    }
    wanted = argv + 1;
    facts();
    return 0;
}
