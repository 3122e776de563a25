/* A 32-bit program that closes a descriptor that is not open, again and again.
 *
 * usage: sys_compat
 *
 * build: gcc -m32 -O2 -nostdlib -static -fno-pic -no-pie {src} -o {out}
 */
enum { WRITE = 4, CLOSE = 6 };

static int call(int number, int first, int second, int third) {
    int result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(first), "c"(second), "d"(third)
                     : "memory");
    return result;
}

void _start(void) {
    call(WRITE, 1, (int)"ready\n", 6);
    for (;;)
        call(CLOSE, 99, 0, 0);
}
