/* What a script must not be able to do, tried from inside a sandbox.
 *
 * Built static and run as a run's script, with what lies outside as arguments:
 *
 *     probe MODE [FILE PORT ABSTRACT PID SHMKEY]
 *
 * MODE is "all", "terminal", "share" (makes what another run must not find, says "ready", and
 * stays until its stdin ends), or "full" (lets nobody wait for room in its output, and ends when
 * there is none left). One line a probe on stdout, "NAME<TAB>allowed<TAB>0" or
 * "NAME<TAB>denied<TAB>ERRNO", and "end" when all were tried. Each is tried in a process of its
 * own: a signal is "killed". Arguments are valid wherever they can be, so that an error tells of a
 * refusal and not of a bad argument. Nothing here does harm where it is allowed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static const char *host_file = "/nowhere", *host_abstract = "nowhere";
static int host_port = 1, host_pid = 1 << 21, shm_key = 1;
static char buffer[65536];

static void tell(const char *name, const char *what, int number)
{
    printf("%s\t%s\t%d\n", name, what, number);
    fflush(stdout);
}

static void try(const char *name, long (*probe)(void))
{
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        errno = 0;
        long result = probe();
        _exit(result >= 0 ? 0 : errno ? errno : 255);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        tell(name, "broken", errno);
    else if (WIFSIGNALED(status))
        tell(name, "killed", WTERMSIG(status));
    else if (WEXITSTATUS(status))
        tell(name, "denied", WEXITSTATUS(status));
    else
        tell(name, "allowed", 0);
}

#define PROBE(id, ...) static long id(void) { return (long)(__VA_ARGS__); }

/* Reading: empty is a denial too, it is how a file is masked. */
static long read_some(const char *path)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n == 0)
        errno = ENODATA;
    return n > 0 ? 0 : -1;
}

static long open_to_write(const char *path) { return open(path, O_WRONLY); }

/* ---- files of the host */
static long file_through(const char *prefix)
{
    snprintf(buffer, sizeof buffer, "%s%s", prefix, host_file);
    return open(buffer, O_RDONLY);
}
PROBE(p_file, open(host_file, O_RDONLY))
PROBE(p_file_dots, file_through("/tmp/../../../../../.."))
PROBE(p_file_root, file_through("/proc/1/root"))
PROBE(p_file_cwd, file_through("/proc/1/cwd/../../../../../.."))
static long p_file_fds(void)
{
    for (int fd = 0; fd < 1024; fd++)
        if (openat(fd, host_file + 1, O_RDONLY) >= 0 || openat(fd, "..", O_RDONLY | O_DIRECTORY) >= 0)
            return 0;
    errno = ENOENT;
    return -1;
}
static long p_file_handle(void)
{
    struct { struct file_handle handle; unsigned char bytes[128]; } h = { .handle.handle_bytes = 128 };
    int mount_id;
    if (name_to_handle_at(AT_FDCWD, "/", &h.handle, &mount_id, 0) < 0)
        return -1;
    return open_by_handle_at(AT_FDCWD, &h.handle, O_RDONLY);
}

/* ---- processes */
PROBE(p_kill_host, kill(host_pid, 0))
PROBE(p_ptrace_host, ptrace(PTRACE_SEIZE, host_pid, 0, 0))
PROBE(p_pidfd_host, syscall(SYS_pidfd_open, host_pid, 0))
PROBE(p_ptrace_init, ptrace(PTRACE_SEIZE, 1, 0, 0))
static long p_vm_init(void)
{
    struct iovec local = { buffer, 8 }, remote = { (void *)0x400000, 8 };
    return syscall(SYS_process_vm_readv, 1, &local, 1, &remote, 1, 0);
}
PROBE(p_mem_init, open("/proc/1/mem", O_RDONLY))
static long p_fd_init(void)
{
    int fd = syscall(SYS_pidfd_open, 1, 0);
    return fd < 0 ? -1 : syscall(SYS_pidfd_getfd, fd, 0, 0);
}
static long p_setns_init(void)
{
    int fd = open("/proc/1/ns/mnt", O_RDONLY);
    return fd < 0 ? -1 : setns(fd, 0);
}
PROBE(p_kill_init_group, kill(-1, 0)) /* only own processes; what it reaches is in its namespace */

/* ---- mounts and roots */
PROBE(p_mount_tmpfs, mount("x", "/tmp", "tmpfs", 0, 0))
PROBE(p_mount_proc, mount("x", "/tmp", "proc", 0, 0))
PROBE(p_mount_cgroup, mount("x", "/tmp", "cgroup", 0, "memory"))
PROBE(p_mount_cgroup2, mount("x", "/tmp", "cgroup2", 0, 0))
PROBE(p_mount_bind, mount("/etc", "/tmp", 0, MS_BIND, 0))
PROBE(p_remount, mount("", "/", 0, MS_REMOUNT, 0))
PROBE(p_umount_proc, umount2("/proc", MNT_DETACH))
PROBE(p_fsopen, syscall(SYS_fsopen, "tmpfs", 0))
PROBE(p_open_tree, syscall(SYS_open_tree, AT_FDCWD, "/", 0x8001))
PROBE(p_pivot_root, syscall(SYS_pivot_root, "/", "/tmp"))
PROBE(p_chroot, chroot("/tmp"))

/* ---- namespaces */
PROBE(p_unshare_user, unshare(CLONE_NEWUSER))
PROBE(p_unshare_mount, unshare(CLONE_NEWNS))
PROBE(p_unshare_net, unshare(CLONE_NEWNET))
PROBE(p_unshare_pid, unshare(CLONE_NEWPID))
PROBE(p_unshare_ipc, unshare(CLONE_NEWIPC))
PROBE(p_unshare_uts, unshare(CLONE_NEWUTS))
PROBE(p_unshare_cgroup, unshare(CLONE_NEWCGROUP))
static long p_clone_user(void)
{
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid;
}
static long p_clone3_user(void)
{
    unsigned long long arguments[11] = { CLONE_NEWUSER, 0, 0, 0, SIGCHLD };
    long pid = syscall(SYS_clone3, arguments, 64);
    if (pid == 0)
        _exit(0);
    return pid;
}

/* ---- the kernel's other doors */
PROBE(p_add_key, syscall(SYS_add_key, "user", "probe", "x", 1, -3))
PROBE(p_keyctl, syscall(SYS_keyctl, 0, -3, 1))
PROBE(p_request_key, syscall(SYS_request_key, "user", "probe", 0, 0))
static long p_io_uring(void)
{
    memset(buffer, 0, sizeof buffer);
    return syscall(SYS_io_uring_setup, 4, buffer);
}
static long p_bpf(void)
{
    unsigned map[32] = { 2, 4, 4, 1 }; /* an array of one: type, key, value, entries */
    return syscall(SYS_bpf, 0, map, sizeof map);
}
static long p_perf(void)
{
    struct perf_event_attr a = { .size = sizeof a, .type = PERF_TYPE_SOFTWARE, .exclude_kernel = 1 };
    return syscall(SYS_perf_event_open, &a, 0, -1, -1, 0);
}
PROBE(p_userfaultfd, syscall(SYS_userfaultfd, 1))
PROBE(p_syslog, syscall(SYS_syslog, 3, buffer, sizeof buffer))
PROBE(p_init_module, syscall(SYS_init_module, buffer, 1, ""))
PROBE(p_kexec, syscall(SYS_kexec_load, 0, 0, 0, 0))
PROBE(p_reboot, syscall(SYS_reboot, 0, 0, 0, 0)) /* no magic: refused even to root */
PROBE(p_swapon, syscall(SYS_swapon, "/tmp", 0))
PROBE(p_acct, syscall(SYS_acct, 0))
static long p_settime(void)
{
    struct timeval now;
    gettimeofday(&now, 0);
    return settimeofday(&now, 0);
}
PROBE(p_sethostname, sethostname("probe", 5))
PROBE(p_fanotify, syscall(SYS_fanotify_init, 0x10, 0))
PROBE(p_personality, personality(ADDR_NO_RANDOMIZE))
#ifdef __x86_64__
PROBE(p_iopl, syscall(SYS_iopl, 3))
PROBE(p_ioperm, syscall(SYS_ioperm, 0x80, 1, 1))
static long socketcall_vsock(void) /* by the 32-bit door, which has one call for all of sockets */
{
    long result;
    unsigned *arguments = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (arguments == MAP_FAILED)
        return -1;
    arguments[0] = AF_VSOCK, arguments[1] = SOCK_STREAM, arguments[2] = 0;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(102), "b"(1), "c"(arguments) : "memory");
    if (result < 0)
        errno = -result;
    return result < 0 ? -1 : 0;
}
PROBE(p_vsock_int80, socketcall_vsock())
PROBE(p_x32, syscall(0x40000000 | 39))
#endif

/* ---- devices and identity */
PROBE(p_mknod_block, mknod("/tmp/block", S_IFBLK | 0600, makedev(254, 0)))
PROBE(p_mknod_mem, mknod("/tmp/memory", S_IFCHR | 0600, makedev(1, 1)))
PROBE(p_setuid, setuid(getuid() + 1))
PROBE(p_setgid, setgid(getgid() + 1))
static long p_setgroups(void)
{
    gid_t group = getgid();
    return syscall(SYS_setgroups, 1, &group);
}
static long p_chown(void)
{
    close(creat("/tmp/mine", 0600));
    return chown("/tmp/mine", getuid() + 1, -1);
}
static long raise_limit(int resource)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit) < 0)
        return -1;
    if (limit.rlim_max == RLIM_INFINITY) {
        errno = ENODATA; /* nothing to raise: bounded by other means */
        return -1;
    }
    limit.rlim_cur = ++limit.rlim_max;
    return setrlimit(resource, &limit);
}
PROBE(p_rlimit_files, raise_limit(RLIMIT_NOFILE))
PROBE(p_rlimit_processes, raise_limit(RLIMIT_NPROC))
PROBE(p_rlimit_core, raise_limit(RLIMIT_CORE))
PROBE(p_priority, setpriority(PRIO_PROCESS, 0, -20))
static long p_realtime(void)
{
    struct sched_param p = { .sched_priority = 1 };
    return sched_setscheduler(0, SCHED_FIFO, &p);
}
static long p_oom(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    return fd < 0 ? -1 : write(fd, "-1000", 5);
}

/* ---- sockets */
PROBE(p_vsock, socket(AF_VSOCK, SOCK_STREAM, 0))
PROBE(p_packet, socket(AF_PACKET, SOCK_RAW, 0))
PROBE(p_raw, socket(AF_INET, SOCK_RAW, IPPROTO_ICMP))
PROBE(p_raw6, socket(AF_INET6, SOCK_RAW, 58))
static long connect_to(const char *address, int port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
    inet_pton(AF_INET, address, &a.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval patience = { 2, 0 };
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return fd < 0 ? -1 : connect(fd, (void *)&a, sizeof a);
}
PROBE(p_loopback, connect_to("127.0.0.1", host_port))
PROBE(p_metadata, connect_to("169.254.169.254", 80))
static long p_abstract(void)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    size_t n = strlen(host_abstract);
    memcpy(a.sun_path + 1, host_abstract, n);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (void *)&a, offsetof(struct sockaddr_un, sun_path) + 1 + n);
}
static long connect_path(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    strncpy(a.sun_path, path, sizeof a.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (void *)&a, sizeof a);
}
PROBE(p_docker, connect_path("/var/run/docker.sock"))
PROBE(p_containerd, connect_path("/run/containerd/containerd.sock"))

/* ---- what the kernel tells, and takes, through files */
#define READ(id, path) PROBE(id, read_some(path))
#define WRITE(id, path) PROBE(id, open_to_write(path))
READ(r_kcore, "/proc/kcore")
READ(r_kmsg, "/proc/kmsg")
READ(r_dev_kmsg, "/dev/kmsg")
READ(r_dev_mem, "/dev/mem")
READ(r_keys, "/proc/keys")
READ(r_timers, "/proc/timer_list")
READ(r_slab, "/proc/slabinfo")
READ(r_vmalloc, "/proc/vmallocinfo")
READ(r_pageflags, "/proc/kpageflags")
READ(r_sched, "/proc/sched_debug")
READ(r_firmware, "/sys/firmware/dmi/tables/DMI")
READ(r_kernel_debug, "/sys/kernel/debug/tracing/trace")
WRITE(w_core, "/proc/sys/kernel/core_pattern")
WRITE(w_modprobe, "/proc/sys/kernel/modprobe")
WRITE(w_hostname, "/proc/sys/kernel/hostname")
WRITE(w_overcommit, "/proc/sys/vm/overcommit_memory")
WRITE(w_caches, "/proc/sys/vm/drop_caches")
WRITE(w_binfmt, "/proc/sys/fs/binfmt_misc/register")
WRITE(w_aslr, "/proc/sys/kernel/randomize_va_space")
WRITE(w_namespaces, "/proc/sys/user/max_user_namespaces")
WRITE(w_sysrq, "/proc/sysrq-trigger")
WRITE(w_irq, "/proc/irq/default_smp_affinity")
WRITE(w_uevent, "/sys/kernel/uevent_helper")
WRITE(w_cgroup, "/sys/fs/cgroup/memory/memory.limit_in_bytes")
WRITE(w_cgroup_procs, "/sys/fs/cgroup/cgroup.procs")
WRITE(w_release, "/sys/fs/cgroup/memory/release_agent")
WRITE(w_script, "/run/cmd/main")
PROBE(w_dev, creat("/dev/probe", 0600))

/* ---- another run's */
PROBE(p_shm, shmget(shm_key, 4096, 0600))

/* ---- what must be allowed: a probe that can do nothing proves nothing */
PROBE(a_memfd, syscall(SYS_memfd_create, "x", 0))
PROBE(a_tmp, creat("/tmp/file", 0700))
PROBE(a_cmd, creat("/cmd/file", 0700))
PROBE(a_socket, socket(AF_INET, SOCK_STREAM, 0))
READ(a_status, "/proc/self/status")
WRITE(a_null, "/dev/null")

static const struct { const char *name; long (*probe)(void); } ALL[] = {
    { "host file", p_file }, { "host file by dots", p_file_dots },
    { "host file by the root of PID 1", p_file_root }, { "host file by the folder of PID 1", p_file_cwd },
    { "host file by an inherited descriptor", p_file_fds }, { "file by handle", p_file_handle },
    { "kill a host process", p_kill_host }, { "ptrace a host process", p_ptrace_host },
    { "pidfd of a host process", p_pidfd_host },
    { "ptrace PID 1", p_ptrace_init }, { "process_vm_readv PID 1", p_vm_init },
    { "open /proc/1/mem", p_mem_init }, { "pidfd_getfd PID 1", p_fd_init }, { "setns to PID 1", p_setns_init },
    { "kill all", p_kill_init_group },
    { "mount tmpfs", p_mount_tmpfs }, { "mount proc", p_mount_proc }, { "mount cgroup", p_mount_cgroup },
    { "mount cgroup2", p_mount_cgroup2 }, { "bind mount", p_mount_bind }, { "remount", p_remount },
    { "umount /proc", p_umount_proc }, { "fsopen", p_fsopen }, { "open_tree", p_open_tree },
    { "pivot_root", p_pivot_root }, { "chroot", p_chroot },
    { "unshare user", p_unshare_user }, { "unshare mount", p_unshare_mount }, { "unshare net", p_unshare_net },
    { "unshare pid", p_unshare_pid }, { "unshare ipc", p_unshare_ipc }, { "unshare uts", p_unshare_uts },
    { "unshare cgroup", p_unshare_cgroup }, { "clone user", p_clone_user }, { "clone3 user", p_clone3_user },
    { "add_key", p_add_key }, { "keyctl", p_keyctl }, { "request_key", p_request_key },
    { "io_uring", p_io_uring }, { "bpf", p_bpf }, { "perf_event_open", p_perf },
    { "userfaultfd", p_userfaultfd }, { "syslog", p_syslog }, { "init_module", p_init_module },
    { "kexec_load", p_kexec }, { "reboot", p_reboot }, { "swapon", p_swapon }, { "acct", p_acct },
    { "settimeofday", p_settime }, { "sethostname", p_sethostname }, { "fanotify_init", p_fanotify },
    { "personality", p_personality },
#ifdef __x86_64__
    { "iopl", p_iopl }, { "ioperm", p_ioperm }, { "vsock by int 0x80", p_vsock_int80 }, { "x32 call", p_x32 },
#endif
    { "mknod block", p_mknod_block }, { "mknod mem", p_mknod_mem }, { "setuid", p_setuid },
    { "setgid", p_setgid }, { "setgroups", p_setgroups }, { "chown", p_chown },
    { "raise files", p_rlimit_files }, { "raise processes", p_rlimit_processes }, { "raise core", p_rlimit_core },
    { "raise priority", p_priority }, { "realtime", p_realtime }, { "oom_score_adj -1000", p_oom },
    { "vsock", p_vsock }, { "packet socket", p_packet }, { "raw socket", p_raw }, { "raw socket 6", p_raw6 },
    { "host loopback", p_loopback }, { "metadata service", p_metadata }, { "host abstract socket", p_abstract },
    { "docker socket", p_docker }, { "containerd socket", p_containerd },
    { "read /proc/kcore", r_kcore }, { "read /proc/kmsg", r_kmsg }, { "read /dev/kmsg", r_dev_kmsg },
    { "read /dev/mem", r_dev_mem }, { "read /proc/keys", r_keys }, { "read /proc/timer_list", r_timers },
    { "read /proc/slabinfo", r_slab }, { "read /proc/vmallocinfo", r_vmalloc },
    { "read /proc/kpageflags", r_pageflags }, { "read /proc/sched_debug", r_sched },
    { "read DMI", r_firmware }, { "read trace", r_kernel_debug },
    { "write core_pattern", w_core }, { "write modprobe", w_modprobe }, { "write hostname", w_hostname },
    { "write overcommit_memory", w_overcommit }, { "write drop_caches", w_caches },
    { "write binfmt_misc", w_binfmt }, { "write randomize_va_space", w_aslr },
    { "write max_user_namespaces", w_namespaces }, { "write sysrq-trigger", w_sysrq },
    { "write smp_affinity", w_irq }, { "write uevent_helper", w_uevent },
    { "write memory limit", w_cgroup }, { "write cgroup.procs", w_cgroup_procs },
    { "write release_agent", w_release }, { "write the script", w_script }, { "write /dev", w_dev },
    { "shared memory of another run", p_shm },
    { "memfd_create", a_memfd }, { "write /tmp", a_tmp }, { "write /cmd", a_cmd }, { "socket", a_socket },
    { "read /proc/self/status", a_status }, { "write /dev/null", a_null },
};

PROBE(t_sti, ioctl(0, TIOCSTI, "x"))
static long t_linux(void)
{
    char paste = 3;
    return ioctl(0, TIOCLINUX, &paste);
}
PROBE(t_console, ioctl(0, TIOCCONS, 0))
static long high_bits(void) /* the kernel reads 32 bits of the request: a filter has to as well */
{
    return syscall(SYS_ioctl, 0, 0x100000000UL | TIOCSTI, "x");
}
PROBE(t_sti_high, high_bits())
PROBE(t_size, ({ struct winsize w; ioctl(0, TIOCGWINSZ, &w); }))

static const struct { const char *name; long (*probe)(void); } TERMINAL[] = {
    { "TIOCSTI", t_sti }, { "TIOCSTI with high bits", t_sti_high }, { "TIOCLINUX", t_linux },
    { "TIOCCONS", t_console }, { "TIOCGWINSZ", t_size },
};

static int share(void)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    size_t n = strlen(host_abstract);
    memcpy(a.sun_path + 1, host_abstract, n);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (void *)&a, offsetof(struct sockaddr_un, sun_path) + 1 + n) < 0 || listen(fd, 8) < 0)
        return 1;
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(host_port) };
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (void *)&in, sizeof in) < 0 || listen(fd, 8) < 0)
        return 2;
    if (creat(host_file, 0644) < 0 || shmget(shm_key, 4096, IPC_CREAT | 0666) < 0)
        return 3;
    tell("ready", "pid", getpid());
    while (read(0, buffer, sizeof buffer) > 0)
        ;
    return 0;
}

static int full(void)
{
    for (int fd = 2; fd > 0; fd--) {
        struct pollfd room = { fd, POLLOUT, 0 };
        if (fcntl(fd, F_SETFL, O_WRONLY | O_NONBLOCK) < 0)
            return 1;
        do {
            while (write(fd, buffer, sizeof buffer) > 0)
                ;
            if (errno != EAGAIN)
                return 2;
        } while (poll(&room, 1, 500) > 0);
    }
    return 7;
}

int main(int argc, char **argv)
{
    if (argc > 6) {
        host_file = argv[2], host_port = atoi(argv[3]), host_abstract = argv[4];
        host_pid = atoi(argv[5]), shm_key = atoi(argv[6]);
    }
    const char *mode = argc > 1 ? argv[1] : "all";
    if (!strcmp(mode, "share"))
        return share();
    if (!strcmp(mode, "full"))
        return full();
    if (!strcmp(mode, "terminal")) {
        struct termios quiet;
        tcgetattr(0, &quiet);
        quiet.c_lflag &= ~ECHO; /* what is pushed into the input is not to be among the lines */
        tcsetattr(0, TCSANOW, &quiet);
        for (size_t i = 0; i < sizeof TERMINAL / sizeof *TERMINAL; i++)
            try(TERMINAL[i].name, TERMINAL[i].probe);
    } else
        for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++)
            try(ALL[i].name, ALL[i].probe);
    tell("end", "allowed", 0);
    return 0;
}
