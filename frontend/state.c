// What `--stop-at` prints: everything the guest's course depends on, so that two runs are equal if this is.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/trace.h"
#include "mmu/mem.h"

#define PAGE       4096u
#define CHUNK      (256u << 10)
#define XSAVE_HEADER 512

static uint64_t mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
    return hash ^ hash >> 32;
}

static uint64_t digest(uint64_t hash, const uint8_t *p, size_t n)
{
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        hash = mix(hash, word);
    }
    while (n--)
        hash = mix(hash, *p++);
    return hash;
}

static bool is_zero(const uint8_t *page)
{
    return !page[0] && !memcmp(page, page + 1, PAGE - 1);
}

// Pages of zeros don't count, and those that nobody has touched are not read: that would allocate them.
static uint64_t digest_memory(const struct mem_map *mem)
{
    uint64_t hash = 1;
    uint8_t *buffer = malloc(CHUNK);
    off_t at = 0;
    if (!buffer)
        return 0;
    while ((at = lseek(mem->ram_fd, at, SEEK_DATA)) >= 0 && (uint64_t)at < mem->ram_size) {
        ssize_t n = pread(mem->ram_fd, buffer, CHUNK, at);
        if (n <= 0)
            break;
        for (ssize_t i = 0; i + PAGE <= n; i += PAGE)
            if (!is_zero(buffer + i))
                hash = digest(mix(hash, (uint64_t)(at + i)), buffer + i, PAGE);
        at += n;
    }
    free(buffer);
    return hash;
}

static uint64_t digest_chips(struct machine *m)
{
    struct stream s;
    stream_init_save(&s);
    machine_chips_state(m, &s);
    uint64_t hash = digest(1, s.data, s.size);
    stream_free(&s);
    return hash;
}

// Without XSTATE_BV and what is behind it, which the host's state has a part in.
static uint64_t digest_fpu(const struct cpu_state *s)
{
    return digest(digest(1, s->xsave, XSAVE_HEADER), s->xsave + XSAVE_HEADER + 64, sizeof s->xsave - XSAVE_HEADER - 64);
}

static void put(FILE *f, const char *name, uint64_t value)
{
    fprintf(f, "%-16s %016" PRIx64 "\n", name, value);
}

static void put_segment(FILE *f, const char *name, const struct segment *s)
{
    fprintf(f, "%-16s %04x base %016" PRIx64 " limit %08x attr %05x\n", name, s->sel, s->base, s->limit, s->attr);
}

void state_print_cpu(FILE *f, struct machine *m)
{
    static const char *const gprs[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const segs[SEG_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs"};
    struct vcpu *v = machine_vcpu(m);
    const struct cpu_state *s = &v->s;
    fprintf(f, "%-16s %" PRIu64 "\n", "instructions", machine_count(m));
    for (unsigned i = 0; i < 16; i++)
        put(f, gprs[i], s->gpr[i]);
    put(f, "rip", s->rip);
    put(f, "rflags", cpu_rflags(v));
    fprintf(f, "%-16s cpl %u shadow %u activity %u\n", "mode", s->cpl, s->shadow, s->activity);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        put_segment(f, segs[i], &s->seg[i]);
    put_segment(f, "ldtr", &s->ldtr);
    put_segment(f, "tr", &s->tr);
    fprintf(f, "%-16s base %016" PRIx64 " limit %04x\n", "gdtr", s->gdtr.base, s->gdtr.limit);
    fprintf(f, "%-16s base %016" PRIx64 " limit %04x\n", "idtr", s->idtr.base, s->idtr.limit);
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"cr0", s->cr0}, {"cr2", s->cr2}, {"cr3", s->cr3}, {"cr4", s->cr4}, {"dr0", s->dr[0]}, {"dr1", s->dr[1]},
        {"dr2", s->dr[2]}, {"dr3", s->dr[3]}, {"dr6", s->dr[6]}, {"dr7", s->dr[7]}, {"xcr0", s->xcr0}, {"efer", s->efer},
        {"star", s->star}, {"lstar", s->lstar}, {"cstar", s->cstar}, {"sfmask", s->sfmask},
        {"kernel_gs_base", s->kernel_gs_base}, {"tsc_aux", s->tsc_aux}, {"sysenter_cs", s->sysenter_cs},
        {"sysenter_esp", s->sysenter_esp}, {"sysenter_eip", s->sysenter_eip}, {"apic_base", s->apic_base}, {"pat", s->pat},
        {"misc_enable", s->misc_enable}, {"spec_ctrl", s->spec_ctrl}, {"mtrr_def_type", s->mtrr_def_type},
        {"tsc", cpu_tsc(v)}, {"tsc_adjust", s->tsc_adjust}, {"kvmclock_system", s->kvmclock_system},
        {"kvmclock_wall", s->kvmclock_wall}, {"mcg_status", s->mcg_status}, {"pdpte0", s->pdpte[0]}, {"pdpte1", s->pdpte[1]},
        {"pdpte2", s->pdpte[2]}, {"pdpte3", s->pdpte[3]},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
        put(f, rows[i].name, rows[i].value);
    put(f, "digest_mtrr", digest(digest(1, (const uint8_t *)s->mtrr_fix, sizeof s->mtrr_fix), (const uint8_t *)s->mtrr_var, sizeof s->mtrr_var));
    put(f, "digest_fpu", digest_fpu(s));
}

void state_print(FILE *f, struct machine *m)
{
    state_print_cpu(f, m);
    put(f, "digest_chips", digest_chips(m));
    put(f, "digest_memory", digest_memory(machine_memory(m)));
    fflush(f);
}
