/* Attaches a BPF program that does nothing to raw tracepoints, until it is killed: what the
 * kernel's way to a program costs, whatever the program does.
 *
 * usage: emptyhook TRACEPOINT...
 *
 * build: gcc -O2 {src} -o {out}
 */
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int bpf(int command, union bpf_attr *attributes) {
    return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

int main(int argc, char **argv) {
    const struct bpf_insn program[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0},
        {.code = BPF_JMP | BPF_EXIT},
    };
    for (int i = 1; i < argc; i++) {
        union bpf_attr attributes;
        memset(&attributes, 0, sizeof attributes);
        attributes.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
        attributes.insns = (uintptr_t)program;
        attributes.insn_cnt = sizeof program / sizeof *program;
        attributes.license = (uintptr_t) "GPL";
        int loaded = bpf(BPF_PROG_LOAD, &attributes);
        memset(&attributes, 0, sizeof attributes);
        attributes.raw_tracepoint.name = (uintptr_t)argv[i];
        attributes.raw_tracepoint.prog_fd = loaded;
        if (loaded < 0 || bpf(BPF_RAW_TRACEPOINT_OPEN, &attributes) < 0) {
            perror(argv[i]);
            return 1;
        }
    }
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}
