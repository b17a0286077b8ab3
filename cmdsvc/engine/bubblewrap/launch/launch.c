/* The first program inside a sandbox: becomes the caller's program, or says exactly why not.
 *
 *   launch FD NPROC TTY SEARCH [NAME=VALUE...] "" PROGRAM [ARGUMENT...]
 *
 * It leads a session of its own, so that signals reach the program's process group and nothing
 * else; with TTY "t", file descriptor 0 becomes that session's controlling terminal. NPROC, if not
 * 0, is RLIMIT_NPROC: it counts within the user namespace only when it is set inside. PROGRAM is
 * looked up in SEARCH (as PATH is written) where it has no slash. The environment is what stands
 * before the empty argument, nothing more.
 *
 * FD is closed by a successful execve. What fails is written to it first, as one int: the errno
 * of execve. Then the exit status is 127 (not found) or 126, as the shell has it.
 *
 * An image need not have a shell, and a shell would change the environment; so this is a static
 * program without a library, a few hundred bytes long. make.py compiles it.
 */

#if defined(__x86_64__)
enum { NR_write = 1, NR_ioctl = 16, NR_execve = 59, NR_exit = 60, NR_fcntl = 72, NR_setsid = 112,
       NR_prlimit64 = 302 };
static long call(long n, long a, long b, long c, long d)
{
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n\thlt\n");
#elif defined(__aarch64__)
enum { NR_fcntl = 25, NR_ioctl = 29, NR_write = 64, NR_exit = 93, NR_setsid = 157, NR_execve = 221,
       NR_prlimit64 = 261 };
static long call(long n, long a, long b, long c, long d)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory", "cc");
    return x0;
}
__asm__(".globl _start\n_start:\n\tmov x0, sp\n\tbl begin\n\tbrk #1\n");
#else
#error "no system calls written down for this architecture"
#endif

enum { E_NOENT = 2, E_ACCES = 13, E_NOTDIR = 20, E_INVAL = 22, E_NAMETOOLONG = 36 };
enum { F_SETFD_ = 2, FD_CLOEXEC_ = 1, TIOCSCTTY_ = 0x540e, RLIMIT_NPROC_ = 6 };
enum { PATH_SIZE = 4096 };

static long number(const char *text)
{
    long value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

static int has_slash(const char *text)
{
    for (; *text; text++)
        if (*text == '/')
            return 1;
    return 0;
}

/* Tries every folder of SEARCH; the errno of the last failure that says most. */
static int search_and_execute(const char *search, char **argv, char **envp)
{
    char path[PATH_SIZE];
    int worst = E_NOENT;
    while (*search) {
        unsigned long n = 0;
        for (; *search && *search != ':'; search++)
            if (n < PATH_SIZE - 2)
                path[n++] = *search;
        if (*search == ':')
            search++;
        path[n++] = '/';
        const char *name = argv[0];
        while (*name && n < PATH_SIZE - 1)
            path[n++] = *name++;
        path[n] = 0;
        if (*name)
            return E_NAMETOOLONG;
        int error = (int)-call(NR_execve, (long)path, (long)argv, (long)envp, 0);
        if (error == E_ACCES)
            worst = error;
        else if (error != E_NOENT && error != E_NOTDIR)
            return error;
    }
    return worst;
}

__attribute__((noreturn)) void begin(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    int error = E_INVAL, fd = -1;

    if (argc > 6) {
        fd = (int)number(argv[1]);
        long processes = number(argv[2]);
        char **envp = argv + 5, **program = envp;
        while (*program && **program)
            program++;
        call(NR_fcntl, fd, F_SETFD_, FD_CLOEXEC_, 0);
        call(NR_setsid, 0, 0, 0, 0);
        if (argv[3][0] == 't')
            call(NR_ioctl, 0, TIOCSCTTY_, 0, 0);
        if (processes > 0) {
            unsigned long limit[2] = { (unsigned long)processes, (unsigned long)processes };
            call(NR_prlimit64, 0, RLIMIT_NPROC_, (long)limit, 0);
        }
        if (program[0] && program[1]) {
            *program++ = 0;
            if (has_slash(program[0]))
                error = (int)-call(NR_execve, (long)program[0], (long)program, (long)envp, 0);
            else if (program[0][0])
                error = search_and_execute(argv[4], program, envp);
            else
                error = E_NOENT;
        }
    }
    if (fd >= 0)
        call(NR_write, fd, (long)&error, sizeof error, 0);
    for (;;)
        call(NR_exit, error == E_NOENT || error == E_NOTDIR ? 127 : 126, 0, 0, 0);
}
