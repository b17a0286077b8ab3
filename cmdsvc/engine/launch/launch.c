/* The first process of a sandbox: starts the caller's program, passes signals on to it, reaps what
 * it leaves behind, and tells the server exactly what became of it.
 *
 *   launch SOCKET SEARCH SCRIPT
 *
 * SOCKET is the descriptor of a SEQPACKET socket, or the path of one to connect to. The server reads
 * from it messages of two ints:
 *   0, 0        the sandbox is ready for a program
 *   1, 0        the program is about to be started; with a terminal, its master is attached
 *   2, errno    the program could not be executed
 *   3, status   the program has ended, with this wait status
 * It writes to it once what is to be started, as five ints (below) with descriptors attached, and
 * from then on one int at a time, a signal for the program's process group.
 *
 *   COUNT NPROC COLUMNS ROWS WITH_SCRIPT + [words, script if there is one, stdin, stdout, stderr]
 *
 * The words are a file, each ended by NUL: first COUNT that are the program's argument vector, then
 * the whole of its environment. (What stands on a command line everybody on the host can read.)
 * The program is looked up in SEARCH (as PATH is written) where its name has no slash. It leads a
 * session of its own. Where COLUMNS is not negative, its standard files are a new terminal of that size, the
 * session's own, from the sandbox's /dev/pts, and none are attached. NPROC, if not 0, is RLIMIT_NPROC:
 * it counts within the user namespace only when it is set inside. The script becomes the file SCRIPT.
 *
 * When the program has ended, what it left behind is killed before that is told. Then it waits until
 * the server lets go of the socket: a sandbox that is torn down would have the processor first.
 *
 * An image need not have a shell, and a shell would change the environment and could tell neither
 * its own failure nor a signal from an exit status; so this is a static program without a library,
 * of some three thousand bytes. make.py compiles it.
 */

#if defined(__x86_64__)
enum { NR_read = 0, NR_write = 1, NR_close = 3, NR_lseek = 8, NR_mmap = 9, NR_rt_sigprocmask = 14,
       NR_ioctl = 16, NR_getpid = 39, NR_socket = 41, NR_connect = 42, NR_sendmsg = 46, NR_recvmsg = 47, NR_clone = 56, NR_execve = 59, NR_exit = 60,
       NR_wait4 = 61, NR_kill = 62, NR_fcntl = 72, NR_setsid = 112, NR_prctl = 157, NR_openat = 257,
       NR_ppoll = 271, NR_signalfd4 = 289, NR_dup3 = 292, NR_prlimit64 = 302,
       NR_close_range = 436 };
static long call6(long n, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n\thlt\n");
#elif defined(__aarch64__)
enum { NR_dup3 = 24, NR_fcntl = 25, NR_ioctl = 29, NR_openat = 56, NR_close = 57, NR_lseek = 62,
       NR_read = 63, NR_write = 64, NR_ppoll = 73, NR_signalfd4 = 74, NR_exit = 93, NR_kill = 129,
       NR_rt_sigprocmask = 135, NR_setsid = 157, NR_prctl = 167, NR_getpid = 172, NR_socket = 198,
       NR_connect = 203, NR_sendmsg = 211, NR_recvmsg = 212, NR_clone = 220, NR_execve = 221, NR_mmap = 222, NR_wait4 = 260,
       NR_prlimit64 = 261, NR_close_range = 436 };
static long call6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "cc");
    return x0;
}
__asm__(".globl _start\n_start:\n\tmov x0, sp\n\tbl begin\n\tbrk #1\n");
#else
#error "no system calls written down for this architecture"
#endif

enum { E_NOENT = 2, E_ACCES = 13, E_NOTDIR = 20, E_NAMETOOLONG = 36 };
enum { SIG_KILL = 9, SIG_CHLD = 17, SIG_BLOCK_ = 0, VFORK = 0x4000, NOHANG = 1, POLL_IN = 1 };
enum { SET_FD = 2, CLOSE_ON_EXEC = 1, SET_DUMPABLE = 4, LIMIT_PROCESSES = 6 };
enum { AT_CWD = -100, READ_WRITE = 2, NO_TERMINAL = 0400, CLOSE_ON_EXEC_FLAG = 02000000 };
enum { WRITE_NEW = 1 | 0100 | 0200, FOR_ALL_TO_RUN = 0555 };
enum { SET_TERMINAL = 0x540e, SET_SIZE = 0x5414, OPEN_PEER = 0x5441, SET_LOCK = 0x40045431 };
enum { SOCKET = 1, RIGHTS = 1, RECEIVED_CLOSE_ON_EXEC = 0x40000000, UNIX = 1, SEQUENCED_PACKETS = 5, NAME_SIZE = 108 };
enum { TO_END = 2, READ_AND_WRITE = 3, PRIVATE = 2, ANONYMOUS = 0x20 };
enum { READY = 0, COMPLETE = 1, NOT_EXECUTED = 2, ENDED = 3 };
enum { PATH_SIZE = 4096 };
enum { FIRST = 1, SEARCH = 2, SCRIPT = 3, ARGUMENTS };
enum { MOST_FDS = 5 };

struct part { void *base; unsigned long size; };
struct rights { unsigned long size; int level, kind, fds[MOST_FDS + 1]; };
struct header { void *name; unsigned long name_size; struct part *parts; unsigned long count;
                void *control; unsigned long control_size; unsigned long flags; };
struct task { int count, processes, columns, rows, with_script; };

static long call(long n, long a, long b, long c, long d, long e)
{
    return call6(n, a, b, c, d, e, 0);
}

static long number(const char *text)
{
    long value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

/* Sends a message, with the descriptor `attached` if it is not negative. */
static void tell(int fd, int what, int value, int attached)
{
    int message[2] = { what, value };
    struct part part = { message, sizeof message };
    struct rights rights = { 20, SOCKET, RIGHTS, { attached } };
    struct header header = { 0, 0, &part, 1, attached < 0 ? 0 : &rights, attached < 0 ? 0 : 24, 0 };
    call(NR_sendmsg, fd, (long)&header, 0, 0, 0);
}

__attribute__((noreturn)) static void leave(int status)
{
    for (;;)
        call(NR_exit, status, 0, 0, 0, 0);
}

static int execute(const char *path, char **argv, char **envp)
{
    return (int)-call(NR_execve, (long)path, (long)argv, (long)envp, 0, 0);
}

/* Tries every folder of SEARCH; the errno that says most. */
static int search(const char *folders, char **argv, char **envp)
{
    char path[PATH_SIZE];
    int worst = E_NOENT;
    while (*folders) {
        unsigned long n = 0;
        for (; *folders && *folders != ':'; folders++)
            if (n < PATH_SIZE - 2)
                path[n++] = *folders;
        if (*folders)
            folders++;
        path[n++] = '/';
        const char *name = argv[0];
        while (*name && n < PATH_SIZE - 1)
            path[n++] = *name++;
        path[n] = 0;
        if (*name)
            return E_NAMETOOLONG;
        int error = execute(path, argv, envp);
        if (error == E_ACCES)
            worst = error;
        else if (error != E_NOENT && error != E_NOTDIR)
            return error;
    }
    return worst;
}

__attribute__((noreturn)) static void become(int fd, const struct task *task, const char *folders, char **program)
{
    call(NR_fcntl, fd, SET_FD, CLOSE_ON_EXEC, 0, 0);
    call(NR_setsid, 0, 0, 0, 0, 0);
    if (task->columns >= 0)
        call(NR_ioctl, 0, SET_TERMINAL, 0, 0, 0);
    unsigned long limit[2] = { (unsigned long)task->processes, (unsigned long)task->processes };
    if (task->processes)
        call(NR_prlimit64, 0, LIMIT_PROCESSES, (long)limit, 0, 0);
    char **envp = program + task->count + 1;
    const char *name = program[0];
    while (*name && *name != '/')
        name++;
    int error = E_NOENT;
    if (*name)
        error = execute(program[0], program, envp);
    else if (program[0][0])
        error = search(folders, program, envp);
    tell(fd, NOT_EXECUTED, error, -1);
    leave(error == E_NOENT || error == E_NOTDIR ? 127 : 126);
}

/* The program's wait status; until then signals are passed on. Ends with the server. */
static int wait_for(long child, int fd)
{
    unsigned long set = 1UL << (SIG_CHLD - 1);
    call(NR_rt_sigprocmask, SIG_BLOCK_, (long)&set, 0, sizeof set, 0);
    int signals = (int)call(NR_signalfd4, -1, (long)&set, sizeof set, 0, 0);
    struct { int fd; short events, found; } ready[2] = { { signals, POLL_IN, 0 }, { fd, POLL_IN, 0 } };
    for (;;) {
        int status;
        long dead;
        while ((dead = call(NR_wait4, -1, (long)&status, NOHANG, 0, 0)) > 0)
            if (dead == child)
                return status;
        call(NR_ppoll, (long)ready, 2, 0, 0, sizeof set);
        char information[128];
        if (ready[0].found)
            call(NR_read, signals, (long)information, sizeof information, 0, 0);
        if (ready[1].found) {
            int wanted;
            if (call(NR_read, fd, (long)&wanted, sizeof wanted, 0, 0) != sizeof wanted)
                leave(137);
            call(NR_kill, -child, wanted, 0, 0, 0);
        }
    }
}

/* Makes a terminal the standard files; its master, or a negative errno. */
static int terminal(int columns, int rows)
{
    int unlocked = 0;
    unsigned short size[4] = { (unsigned short)rows, (unsigned short)columns, 0, 0 };
    long flags = READ_WRITE | NO_TERMINAL | CLOSE_ON_EXEC_FLAG;
    int master = (int)call(NR_openat, AT_CWD, (long)"/dev/ptmx", flags, 0, 0);
    if (master < 0)
        return master;
    call(NR_ioctl, master, SET_LOCK, (long)&unlocked, 0, 0);
    call(NR_ioctl, master, SET_SIZE, (long)size, 0, 0);
    int slave = (int)call(NR_ioctl, master, OPEN_PEER, flags, 0, 0);
    if (slave < 0)
        return slave;
    for (int fd = 0; fd < 3; fd++)
        call(NR_dup3, slave, fd, 0, 0, 0);
    call(NR_close, slave, 0, 0, 0, 0);
    return master;
}

static char *memory(long size, int flags, int fd)
{
    long address = call6(NR_mmap, 0, size, READ_AND_WRITE, flags, fd, 0);
    if (address < 0 && address > -4096)
        leave(126);
    return (char *)address;
}

/* The words of the file `fd` as two vectors, one behind the other: `first` words, then the rest. */
static char **words(int fd, long first)
{
    long size = call(NR_lseek, fd, 0, TO_END, 0, 0), count = 0, n = 0;
    char *text = size > 0 ? memory(size, PRIVATE, fd) : 0;
    for (long i = 0; i < size; i++)
        count += !text[i];
    if (first < 1 || count < first)
        leave(126);
    char **all = (char **)memory((count + 2) * (long)sizeof(char *), PRIVATE | ANONYMOUS, -1);
    for (long i = 0; count > 0; count--) {
        all[n++] = text + i;
        if (n == first)
            n++;
        while (text[i++])
            ;
    }
    return all;
}

/* Makes the file `path` of what `fd` has; 0, or an errno. */
static int script(const char *path, int fd)
{
    long size = call(NR_lseek, fd, 0, TO_END, 0, 0), out, written;
    out = call(NR_openat, AT_CWD, (long)path, WRITE_NEW | CLOSE_ON_EXEC_FLAG, FOR_ALL_TO_RUN, 0);
    if (out < 0)
        return (int)-out;
    for (const char *text = size > 0 ? memory(size, PRIVATE, fd) : 0; size > 0; size -= written) {
        written = call(NR_write, out, (long)text, size, 0, 0);
        if (written < 0)
            return (int)-written;
        text += written;
    }
    call(NR_close, out, 0, 0, 0, 0);
    return 0;
}

/* A socket that is connected to the one at `path`. */
static int connected(const char *path)
{
    struct { unsigned short family; char name[NAME_SIZE]; } address;
    address.family = UNIX;
    for (int i = 0; i < NAME_SIZE; i++)
        if (!(address.name[i] = path[i]))
            break;
    int fd = (int)call(NR_socket, UNIX, SEQUENCED_PACKETS, 0, 0, 0);
    if (fd < 0 || call(NR_connect, fd, (long)&address, sizeof address, 0, 0) < 0)
        leave(126);
    return fd;
}

/* Waits for what is to be started; its descriptors, and how many. Ends with the server. */
static int receive(int fd, struct task *task, int *fds)
{
    struct part part = { task, sizeof *task };
    struct rights rights;
    struct header header = { 0, 0, &part, 1, &rights, sizeof rights, 0 };
    if (call(NR_recvmsg, fd, (long)&header, RECEIVED_CLOSE_ON_EXEC, 0, 0) != sizeof *task)
        leave(0);
    int expected = 1 + !!task->with_script + (task->columns < 0 ? 3 : 0);
    if (header.control_size < 16 || rights.size != 16 + 4 * (unsigned long)expected)
        leave(126);
    for (int i = 0; i < expected; i++)
        fds[i] = rights.fds[i];
    return expected;
}

__attribute__((noreturn)) void begin(long *stack)
{
    char **arguments = (char **)(stack + 1);
    /* Anywhere but in a PID namespace of its own it would kill what is not its own. */
    if (stack[0] < ARGUMENTS || call(NR_getpid, 0, 0, 0, 0, 0) != 1)
        leave(126);
    /* What it says is not the program's to change: closes /proc/1 to it. */
    call(NR_prctl, SET_DUMPABLE, 0, 0, 0, 0);
    struct task task;
    const char *first = arguments[FIRST];
    int fd = *first == '/' ? connected(first) : (int)number(first);
    int master = -1, error = 0, fds[MOST_FDS], *next = fds;
    /* It is the first after the standard files; what bwrap was given besides is not for programs. */
    call(NR_close_range, fd + 1, 0x7fffffff, 0, 0, 0);
    tell(fd, READY, 0, -1);
    int received = receive(fd, &task, fds);
    char **program = words(*next++, task.count);
    if (task.with_script)
        error = script(arguments[SCRIPT], *next++);
    if (task.columns >= 0)
        master = terminal(task.columns, task.rows);
    else
        for (int i = 0; i < 3; i++)
            call(NR_dup3, next[i], i, 0, 0, 0);
    tell(fd, COMPLETE, 0, master);
    for (int i = 0; i < received; i++)
        call(NR_close, fds[i], 0, 0, 0, 0);
    call(NR_close, master, 0, 0, 0, 0);
    if (error) {
        tell(fd, NOT_EXECUTED, error, -1);
        leave(126);
    }
    /* VFORK: this goes on when the program is there, so no signal comes too early for it. */
    long child = call(NR_clone, VFORK | SIG_CHLD, 0, 0, 0, 0);
    if (child == 0)
        become(fd, &task, arguments[SEARCH], program);
    if (child < 0) {
        tell(fd, NOT_EXECUTED, (int)-child, -1);
        leave(126);
    }
    int status = wait_for(child, fd), other;
    call(NR_kill, -1, SIG_KILL, 0, 0, 0);
    while (call(NR_wait4, -1, (long)&other, 0, 0, 0) > 0)
        ;
    for (int i = 0; i < fd; i++)
        call(NR_close, i, 0, 0, 0, 0);
    tell(fd, ENDED, status, -1);
    while (call(NR_read, fd, (long)&other, sizeof other, 0, 0) > 0)
        ;
    leave(status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff);
}
