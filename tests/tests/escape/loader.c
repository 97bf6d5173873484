/* The attack of CVE-2019-5736, as the dynamic loader of an image: the kernel starts it as the interpreter of the
 * runtime's own program, so /proc/self/exe is the host's file. It looks whether that may be written through a
 * descriptor, which it could keep until the program is not executed any more. No C library: a loader has none. */

enum { WRITE = 1, OPEN = 2, EXIT = 231, ACCESS = 21 };

static long call(long number, const void *first, long second, long third)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(first), "S"(second), "d"(third) : "rcx", "r11", "memory");
    return result;
}

static void say(const char *text)
{
    long length = 0;
    while (text[length])
        length++;
    call(WRITE, (const void *)1, (long)text, length);
}

void _start(void)
{
    char path[] = "/proc/self/fd/_";
    long fd = call(OPEN, "/proc/self/exe", 0, 0);
    long may = -9;
    if (fd >= 0 && fd < 10) {
        path[sizeof path - 2] = '0' + fd;
        may = call(ACCESS, path, 2, 0);
    }
    say(may == 0 ? "the program can be written\n" : may == -30 ? "the program is on a read-only file system\n" : "the program was not found\n");
    call(EXIT, 0, 0, 0);
    for (;;)
        ;
}
