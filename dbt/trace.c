// --trace code: each block as it is made, guest and host instructions side by side. Capstone disassembles, so that
// the decoder under test is not the one that explains it. --trace exc and mmu: a line an event. And the engine's counters.
#include <capstone/capstone.h>
#include <inttypes.h>
#include <stdio.h>
#include "cpu/model.h"
#include "dbt/direct/direct.h"
#include "dbt/dbt.h"

static void print_code(FILE *out, const char *what, cs_mode mode, const uint8_t *p, size_t n, uint64_t address)
{
    csh handle;
    cs_insn *insn;
    if (cs_open(CS_ARCH_X86, mode, &handle) != CS_ERR_OK)
        return;
    cs_option(handle, CS_OPT_SKIPDATA, CS_OPT_ON);
    size_t count = cs_disasm(handle, p, n, address, 0, &insn);
    for (size_t i = 0; i < count; i++)
        fprintf(out, "  %s %012" PRIx64 "  %-8s %s\n", what, insn[i].address, insn[i].mnemonic, insn[i].op_str);
    if (count)
        cs_free(insn, count);
    cs_close(&handle);
}

static cs_mode guest_mode(uint32_t key)
{
    return (key & KEY_CODE_MASK) == KEY_CODE64 ? CS_MODE_64 : key & KEY_CODE32 ? CS_MODE_32 : CS_MODE_16;
}

void trace_print_block(FILE *out, struct dbt *d, const struct block *b)
{
    fprintf(out, "block rip %" PRIx64 " gpa %" PRIx64 " key %06x: %u instructions, %u bytes -> %u bytes\n", b->rip, b->gpa, b->key,
            b->insn_count, b->guest_len, b->code_len);
    for (unsigned i = 0; i < b->map_count; i++) {
        unsigned guest = b->map[i].guest, host = b->map[i].host;
        unsigned guest_end = i + 1 < b->map_count ? b->map[i + 1].guest : b->guest_len;
        unsigned host_end = i + 1 < b->map_count ? b->map[i + 1].host : b->code_len;
        uint8_t bytes[16] = {0};
        if (guest_end - guest <= 16 && mem_read(d->v->mem, b->gpa + guest, bytes, guest_end - guest))
            print_code(out, "guest", guest_mode(b->key), bytes, guest_end - guest, b->rip + guest);
        print_code(out, "   tc", CS_MODE_64, (const uint8_t *)(uint64_t)b->code + host, host_end - host, b->code + host);
    }
    fflush(out);
}

static void on_block(void *opaque, struct dbt *d, const struct block *b)
{
    if (opaque)
        trace_print_block(opaque, d, b);
    if (d->perf_file)
        perf_print_block(d, b);
}

void trace_choose_hook(struct dbt *d)
{
    d->trace_block = d->trace_opaque || d->perf_file ? on_block : NULL;
}

void engine_software_trace_code(struct vcpu *v, FILE *out)
{
    struct dbt *d = v->engine;
    d->trace_opaque = out;
    trace_choose_hook(d);
}

// Cost nothing when off: the listener is null, and the flushes' hooks test a flag.
static void on_event(struct dbt *d, enum dbt_event event, uint64_t a, uint64_t b)
{
    static const char *const names[] = {"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "",
                                        "#TS", "#NP", "#SS", "#GP", "#PF", "", "#MF", "#AC", "#MC", "#XM"};
    const struct cpu_event *e = &d->v->event;
    FILE *f = d->trace_file;
    switch (event) {
    case EVENT_EXCEPTION: {
        bool fault = e->vector == EXC_PF && !e->soft;
        if (!d->trace_exc && !fault)
            return;
        fprintf(f, "%s  ", d->trace_exc ? "exc" : "mmu");
        if (e->soft)
            fprintf(f, "INT %#" PRIx64, a);
        else
            fprintf(f, "%s vector %" PRIu64, a < sizeof names / sizeof names[0] ? names[a] : "", a);
        if (e->has_error)
            fprintf(f, " error %#x", e->error);
        if (fault)
            fprintf(f, " cr2 %#" PRIx64, e->cr2);
        fprintf(f, " rip %#" PRIx64 " cpl %u\n", b, d->v->s.cpl);
        break;
    }
    case EVENT_INTERRUPT:
        if (d->trace_exc)
            fprintf(f, "exc  interrupt vector %" PRIu64 " rip %#" PRIx64 " cpl %u\n", a, b, d->v->s.cpl);
        break;
    case EVENT_FLUSH_PAGE: fprintf(f, "mmu  flush page %#" PRIx64 " rip %#" PRIx64 "\n", a, d->v->s.rip); break;
    case EVENT_FLUSH_ALL: fprintf(f, "mmu  flush all%s cr3 %#" PRIx64 "\n", a ? ", global ones too" : "", d->v->s.cr3); break;
    case EVENT_CODE_WRITTEN: fprintf(f, "mmu  code written at gpa %#" PRIx64 ", %" PRIu64 " bytes\n", a, b); break;
    }
    fflush(f);
}

void engine_software_trace_events(struct vcpu *v, FILE *out, bool exc, bool mmu)
{
    struct dbt *d = v->engine;
    d->trace_file = out;
    d->trace_event = out ? on_event : NULL;
    d->trace_exc = out && exc;
    d->trace_mmu = out && mmu;
    v->listener.delivering = out && (exc || mmu) ? run_delivering : NULL;
}

// Nanoseconds below which `share` of the interrupts came out of translated code, in whole microseconds.
static uint64_t kick_quantile(const struct dbt *d, double share)
{
    uint64_t all = 0, seen = 0;
    for (unsigned i = 0; i < 64; i++)
        all += d->kick_us[i];
    for (unsigned i = 0; i < 64; i++)
        if ((seen += d->kick_us[i]) && (double)seen >= share * (double)all)
            return 1000ull * (i + 1);
    return 0;
}

void engine_software_stats(struct vcpu *v, void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque)
{
    const struct dbt *d = v->engine;
    const struct dbt_counters *n = &d->n;
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"blocks_translated", n->blocks}, {"blocks_copied", n->rebased}, {"guest_instructions_translated", n->guest_insns}, {"guest_bytes_translated", n->guest_bytes},
        {"host_bytes_emitted", n->host_bytes}, {"translation_cycles", n->translate_cycles},
        {"time_translator", (uint64_t)((unsigned __int128)n->translate_cycles * v->model->host_ns_per_tsc_q32 >> 32)},
        {"expansion_percent", n->guest_bytes ? n->host_bytes * 100 / n->guest_bytes : 0},
        {"cycles_per_instruction_translated", n->guest_insns ? n->translate_cycles / n->guest_insns : 0},
        {"chains_made", n->chains}, {"dispatches", n->dispatches}, {"sensitive_instructions", n->sensitive}, {"string_instructions", n->strings},
        {"tlb_misses", n->slow_fills}, {"bounced_accesses", n->bounces}, {"kicks", n->kicks}, {"kick_traps", n->kick_traps},
        {"time_kick_p50", kick_quantile(d, 0.5)}, {"time_kick_p99", kick_quantile(d, 0.99)},
        {"time_kick_max", (uint64_t)((unsigned __int128)d->kick_cycles_max * v->model->host_ns_per_tsc_q32 >> 32)},
        {"interrupts", n->interrupts}, {"exceptions", n->exceptions}, {"indirect_misses", n->ib_misses}, {"return_misses", n->ret_misses}, {"return_unpredicted", n->ret_empty}, {"group_misses", n->group_misses},
        {"steps", n->steps}, {"services", n->services}, {"segment_checks", n->segment_checks}, {"host_faults", n->faults},
        {"gathers", n->gathers}, {"guest_instructions_executed", v->count.on ? cpu_count(v) : 0},
        {"cross_page_links_reset", n->far_resets}, {"blocks_invalidated", n->invalidations}, {"cache_evictions", n->evictions},
        {"time_evictions", (uint64_t)((unsigned __int128)n->eviction_cycles * v->model->host_ns_per_tsc_q32 >> 32)},
        {"time_eviction_max", (uint64_t)((unsigned __int128)n->eviction_cycles_max * v->model->host_ns_per_tsc_q32 >> 32)},
        {"page_walks", v->tlb->walks}, {"tlb_flushes", v->tlb->flushes}, {"tlb_page_flushes", v->tlb->page_flushes},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
        emit(opaque, rows[i].name, rows[i].value);
    if (d->direct)
        direct_emit(d->direct, emit, opaque);
    measure_emit(v->engine, emit, opaque);
    for (unsigned i = 0; i < OP_COUNT; i++)
        if (n->op_count[i]) {
            char name[64];
            snprintf(name, sizeof name, "helper_%s", insn_names[i]);
            emit(opaque, name, n->op_count[i]);
        }
}

static struct engine_step step_of(enum engine_step_kind kind, uint64_t rip, uint32_t key, unsigned detail)
{
    return (struct engine_step){.rip = rip, .detail = (uint16_t)detail, .kind = (uint8_t)kind, .bits = (uint8_t)key_bits(key),
                                .cpl = (uint8_t)((key & KEY_CPL_MASK) >> KEY_CPL_SHIFT)};
}

unsigned engine_software_trail(struct vcpu *v, struct engine_step out[ENGINE_TRAIL])
{
    struct dbt *d = v->engine;
    const struct trail *t = &d->trail;
    unsigned n = 0;
    for (unsigned i = 1; i <= ENGINE_STEPS; i++) {
        unsigned at = (t->at + ENGINE_STEPS - i) % ENGINE_STEPS;
        if (t->step[at].kind == STEP_NONE)
            break;
        out[n] = step_of((enum engine_step_kind)t->step[at].kind, t->step[at].rip, t->step[at].key, t->step[at].detail);
        out[n++].error = t->step[at].kind == STEP_EXCEPTION ? t->step[at].error : 0;
    }
    // Host return addresses of the mode that ran last: each is the landing behind a CALL, which ends its block.
    for (uint64_t sp = d->ras_sp, calls = 0; sp >= d->ras_base - RAS_SIZE && sp < d->ras_base && calls < ENGINE_CALLS; sp += 8) {
        uint64_t landing = *(const uint64_t *)sp, rip;
        struct block *b = cache_block_at(d, landing);
        bool start;
        if (!b || !cache_guest_rip(b, landing, &rip, &start))
            break;
        out[n++] = step_of(STEP_CALL, rip, b->key, 0);
        calls++;
    }
    return n;
}

void engine_software_exact_flags(struct vcpu *v, bool exact)
{
    struct dbt *d = v->engine;
    d->exact_flags = v->x87_exact = exact;
}

void engine_software_stop_at(struct vcpu *v, uint64_t count)
{
    v->count.stop_at = count;
    cpu_count_set_limit(v);
}
