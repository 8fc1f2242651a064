// Probing, workers and their parent. See run.h.
#include <cpuid.h>
#include "tests/diff/run.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STALL_SECONDS 20

// ---- both sides in one process
int sides_create(struct sides *s, const struct run_shared *sh, const struct diff_options *o)
{
    memset(s, 0, sizeof *s);
    int error = generator_init(&s->generator, &sh->forms, o->seed);
    if (error)
        return error;
    // The translator first: the native side hands it the signals that are not its own.
    if (!o->native_only) {
        s->translated = translated_create(s->generator.pool->read_only);
        if (!s->translated)
            return -ENOTSUP;
    }
    s->native = native_create(s->generator.pool->read_only);
    return s->native ? 0 : -ENOTSUP;
}

void sides_destroy(struct sides *s)
{
    native_destroy(s->native);
    translated_destroy(s->translated);
    generator_free(&s->generator);
}

// The bug of --plant: a flipped carry and a wrong XMM byte wherever the mnemonic is in a case that runs to
// its end.
static void plant_bug(const struct form_table *t, const struct diff_case *c, const char *mnemonic,
                      struct diff_state *s)
{
    for (unsigned i = 0; i < c->count; i++)
        if (c->unit[i].form != FORM_NONE &&
            !strcmp(ZydisMnemonicGetString((ZydisMnemonic)t->form[c->unit[i].form].mnemonic), mnemonic)) {
            s->rflags ^= 1;
            s->fpu.zmm[3][5] ^= 0x10;
        }
}

// An endless loop says nothing. Real mode has no page faults, and exceptions need a stack.
static bool comparable(const struct diff_code *code, const struct diff_state *native)
{
    if (native->vector == VECTOR_HANG)
        return false;
    if (code->world != WORLD_REAL || native->vector == VECTOR_NONE)
        return true;
    uint32_t sp = native->gpr[RSP_NUMBER] & 0xffff;
    return native->vector != 14 && sp >= 6 && mem_index(ARENA_BASE + sp - 6) >= 0 && mem_index(ARENA_BASE + sp - 1) >= 0;
}

static void take_spoilt(const struct diff_state *a, struct diff_state *b)
{
    for (unsigned i = 0; i < b->spoilt_size; i++) {
        int at = mem_index(b->spoilt + i);
        if (at >= 0)
            b->mem[at] = a->mem[at];
    }
}

// AMD's processors lose the data pointer when the host's kernel switches threads without an exception pending: whether
// nothing else differs, and the next runs agree.
static bool pointers_lost(struct sides *s, struct diff_code *code, struct diff_case *c, const struct compare *k,
                          struct diff_state *a, struct diff_state *b)
{
    struct compare rest = *k;
    rest.instruction_pointers = false;
    if (!s->translated || !states_equal(&rest, a, b))
        return false;
    if (native_run(s->native, code, &c->in, a) || translated_run(s->translated, code, &c->in, b))
        return false;
    take_spoilt(a, b);
    return states_equal(k, a, b);
}

static bool is_memory_fault(unsigned vector)
{
    return (vector >= 12 && vector <= 14) || vector == 17;
}

// What AMD's family 17h does otherwise than the manuals say, seen on its model 1:
//  1. VMOVDDUP of 256 bits reads as far as the last quadword it uses: 24 bytes, in two accesses.
//  2. A conversion to ESP that raises #XM behind a PUSH or POP leaves ESP as it was before that.
static bool is_of_family_17h(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op, const struct compare *k, const struct diff_state *a,
                             const struct diff_state *b)
{
    static struct diff_state c;
    if (z->mnemonic == ZYDIS_MNEMONIC_VMOVDDUP && op[1].type == ZYDIS_OPERAND_TYPE_MEMORY && op[1].size == 256)
        return b->vector >= 12 && b->vector <= 14;
    if (a->vector != 19 || b->vector != 19 || op[0].type != ZYDIS_OPERAND_TYPE_REGISTER ||
        (op[0].reg.value != ZYDIS_REGISTER_ESP && op[0].reg.value != ZYDIS_REGISTER_RSP))
        return false;
    c = *b;
    c.gpr[RSP_NUMBER] = a->gpr[RSP_NUMBER];
    return states_equal(k, a, &c);
}

// What Intel's processors do, and the translator does not follow (docs/decisions/020-vendors.md):
//  1. An x87 store that raises an unmasked exception stores nothing, and its operand is not looked at. Else stores of 80 bits are
//     done in two parts.
//  2. VCVTPS2PH converts before its operand is looked at: flags in MXCSR stay, and #XM comes first.
//  3. The opcode of an error that is not the last instruction's is that which the translator gave it: with another operand.
static bool is_of_intel(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op, const struct compare *k, const struct diff_state *a,
                        const struct diff_state *b)
{
    static struct diff_state c;
    c = *b;
    if (!((a->fpu.fop ^ b->fpu.fop) & 0x738)) // the operation is the same
        c.fpu.fop = a->fpu.fop;
    if (!z || !is_memory_fault(b->vector) || op[0].type != ZYDIS_OPERAND_TYPE_MEMORY)
        return states_equal(k, a, &c);
    if (z->meta.isa_ext == ZYDIS_ISA_EXT_X87 || z->mnemonic == ZYDIS_MNEMONIC_FISTTP) {
        // It went on, and FOP says that it is the one that raised an unmasked exception.
        if (a->vector != b->vector || a->rip != b->rip)
            return (uint32_t)a->fpu.fip == (uint32_t)b->rip && (a->fpu.fop & 0x738) == ((z->opcode & 7) << 8 | z->raw.modrm.reg << 3);
        if (op[0].size == 80)
            memcpy(c.mem, a->mem, sizeof c.mem);
    }
    if (z->mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH) {
        if (a->vector == 19)
            return a->rip == b->rip;
        c.fpu.mxcsr |= a->fpu.mxcsr & 0x3f;
    }
    return states_equal(k, a, &c);
}

static bool is_of_vendor(const struct diff_code *code, const struct compare *k, const struct diff_state *a, const struct diff_state *b)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    uint32_t eax, vendor, ecx, edx, signature, ebx;
    uint64_t at = b->rip - (code->linear - code_base(code->mode));
    if (!__get_cpuid(0, &eax, &vendor, &ecx, &edx) || !__get_cpuid(1, &signature, &ebx, &ecx, &edx))
        return false;
    forms_decoder(&decoder, code->mode);
    bool known = b->vector != VECTOR_NONE && at < code->length &&
                 ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code->bytes + at, code->length - at, &z, op));
    if (vendor == signature_INTEL_ebx)
        return is_of_intel(known ? &z : NULL, op, k, a, b);
    return known && vendor == signature_AMD_ebx && (signature >> 8 & 15) + (signature >> 20 & 255) == 0x17 && is_of_family_17h(&z, op, k, a, b);
}

bool sides_agree(struct sides *s, const struct diff_options *o, struct diff_case *c, struct diff_code *code,
                 struct diff_state *a, struct diff_state *b, volatile uint32_t *phase)
{
    *phase = PHASE_NATIVE;
    if (native_run(s->native, code, &c->in, a))
        return false;
    *phase = PHASE_OTHER;
    if (!comparable(code, a)) {
        *b = *a;
        return true;
    }
    int error = s->translated ? translated_run(s->translated, code, &c->in, b)
                              : native_run(s->native, code, &c->in, b);
    *phase = PHASE_GENERATE;
    if (error)
        return false;
    if (o->plant)
        plant_bug(s->generator.forms, c, o->plant, b);
    struct compare k = compare_for(c, s->generator.forms, a, o->instruction_pointers);
    take_spoilt(a, b);
    if (states_equal(&k, a, b))
        return true;
    if (o->instruction_pointers && pointers_lost(s, code, c, &k, a, b))
        return true;
    if (s->translated && is_of_vendor(code, &k, a, b))
        return true;
    // Some monitors beneath the host's kernel answer a first access by a stack pointer that is not canonical with #GP,
    // when they have yet to map the page. A processor would do it again.
    if (a->vector == 13 && !a->error) {
        if (native_run(s->native, code, &c->in, a))
            return false;
        take_spoilt(a, b);
        if (states_equal(&k, a, b))
            return true;
    }
    // Not the translator's fault if the code found its memory: rare enough to look into only now.
    return s->translated && !native_run_alone(s->native, code, &c->in, a) &&
           (take_spoilt(a, b), states_equal(&k, a, b));
}

// ---- probing: which forms the host has
static bool filter_matches(const struct form *f, const char *filter)
{
    return !filter || !strcmp(ZydisMnemonicGetString((ZydisMnemonic)f->mnemonic), filter);
}

// A guest's CPUID is believed, and some processors execute what theirs does not announce: FMA4 on AMD's family 17h (APM vol. 3,
// appendix D), GFNI without AVX-512 where a hypervisor hides the bit.
static bool is_unannounced(const struct form *f)
{
    uint32_t a, b, c, d;
    bool fma4 = f->encoding == ENC_VEX && f->map == 3 &&
                ((f->opcode >= 0x5c && f->opcode <= 0x5f) || (f->opcode & 0xe8) == 0x68);
    if (fma4)
        return !__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & bit_FMA4);
    switch (f->mnemonic) {
    case ZYDIS_MNEMONIC_GF2P8MULB:
    case ZYDIS_MNEMONIC_GF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_GF2P8AFFINEINVQB:
    case ZYDIS_MNEMONIC_VGF2P8MULB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB: return !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & bit_GFNI);
    default: return false;
    }
}

#define PROBE_TRIES    24
#define OFFERED        1
#define OFFERED_VARIES 2 // two runs from one state differ

static void probe_form(struct sides *s, const struct diff_options *o, struct run_shared *sh, uint32_t index)
{
    static struct diff_case c;
    static struct diff_state a, b;
    struct diff_code code;
    struct form *f = &sh->forms.form[index];
    volatile uint32_t phase;
    struct rng r = rng_make(o->seed, index);
    for (unsigned tries = 0; tries < PROBE_TRIES; tries++) {
        if (!generator_probe(&s->generator, &r, index, &c) || !case_link(&c, &code))
            continue;
        bool same = sides_agree(s, o, &c, &code, &a, &b, &phase);
        if (!same) {
            f->offered = OFFERED_VARIES;
            return;
        }
        if (a.vector != 6)
            f->offered = OFFERED;
        if (f->offered && tries >= 2)
            return;
    }
}

static void probe_child(struct run_shared *sh, const struct diff_options *o)
{
    struct diff_options native = *o;
    native.native_only = true;
    native.plant = NULL;
    struct sides s;
    if (sides_create(&s, sh, &native))
        _exit(2);
    while (sh->probe_at < sh->forms.count) {
        uint32_t index = (uint32_t)sh->probe_at;
        if (filter_matches(&sh->forms.form[index], o->filter) && !is_unannounced(&sh->forms.form[index]))
            probe_form(&s, &native, sh, index);
        sh->probe_at++;
    }
    _exit(0);
}

static int wait_child(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    return status;
}

void run_probe(struct run_shared *sh, const struct diff_options *o)
{
    struct form_table *t = &sh->forms;
    while (sh->probe_at < t->count) {
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) {
            alarm(300);
            probe_child(sh, o);
        }
        int status = pid > 0 ? wait_child(pid) : 0x200;
        if (WIFEXITED(status) && WEXITSTATUS(status))
            break; // no native side at all: said already
        if (WIFSIGNALED(status)) {
            char name[128];
            form_name(&t->form[sh->probe_at], name, sizeof name);
            fprintf(stderr, "difftest: probing %s ended the process (signal %d): left out\n", name,
                    WTERMSIG(status));
            t->form[sh->probe_at].offered = 0;
            sh->probe_at++;
        }
    }
    unsigned varies = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->form[i].offered == OFFERED)
            t->offered[t->offered_count++] = i;
        if (t->form[i].offered == OFFERED_VARIES) {
            char name[128];
            form_name(&t->form[i], name, sizeof name);
            if (varies++ < 10)
                fprintf(stderr, "difftest: not deterministic, left out: %s\n", name);
        }
    }
}

struct run_shared *run_shared_create(const struct diff_options *o)
{
    struct run_shared *sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (sh == MAP_FAILED)
        return NULL;
    forms_enumerate(&sh->forms, o->mode);
    return sh;
}

// ---- workers
static void count_result(struct form_table *t, const struct diff_case *c, const struct diff_state *a,
                         bool agree)
{
    struct form *f = &t->form[c->form];
    if (!agree) {
        if (c->count == 1) // in a sequence another instruction may be the one
            __atomic_fetch_add(&f->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    __atomic_fetch_add(a->vector == VECTOR_NONE ? &f->cases : &f->faulted, 1, __ATOMIC_RELAXED);
    if (c->crosses)
        __atomic_fetch_add(&f->crossed, 1, __ATOMIC_RELAXED);
}

static void note_failure(struct run_shared *sh, uint64_t number)
{
    uint32_t n = __atomic_fetch_add(&sh->failures, 1, __ATOMIC_SEQ_CST);
    if (n < MAX_REPORTED)
        sh->failed_case[n] = number;
}

static void worker(struct run_shared *sh, const struct diff_options *o, unsigned w, uint64_t from)
{
    static struct diff_case c;
    static struct diff_code code;
    static struct diff_state a, b;
    struct worker_slot *slot = &sh->worker[w];
    struct sides s;
    if (sides_create(&s, sh, o))
        _exit(2);
    for (uint64_t n = from; n < o->first + o->cases && sh->failures < o->max_failures; n += o->jobs) {
        slot->number = n;
        slot->phase = PHASE_GENERATE;
        if (!generator_case(&s.generator, n, &c) || !case_link(&c, &code)) {
            slot->skipped++;
            continue;
        }
        bool agree = sides_agree(&s, o, &c, &code, &a, &b, &slot->phase);
        count_result(&sh->forms, &c, &a, agree);
        if (!agree)
            note_failure(sh, n);
        slot->done++;
    }
    slot->phase = PHASE_NONE;
    _exit(0);
}

static pid_t start_worker(struct run_shared *sh, const struct diff_options *o, unsigned w, uint64_t from)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        worker(sh, o, w, from);
    return pid;
}

static const char *phase_name(uint32_t phase, bool native_only)
{
    return phase == PHASE_NATIVE  ? "in the native run"
           : phase == PHASE_OTHER ? native_only ? "in the second native run" : "in the translator"
                                  : "while making the case";
}

// A failure that needs what ran before it (stale translations, say): the worker's last cases again, then this
// one.
#define REPLAY_CASES 3000

static void replay(struct sides *s, const struct diff_options *o, const struct form_table *forms,
                   uint64_t number, struct diff_case *c)
{
    static struct diff_code code;
    static struct diff_state a, b;
    volatile uint32_t phase;
    bool agree = true;
    uint64_t back = (number - o->first) / o->jobs;
    if (back > REPLAY_CASES)
        back = REPLAY_CASES;
    for (uint64_t n = number - back * o->jobs; n <= number; n += o->jobs)
        if (generator_case(&s->generator, n, c) && case_link(c, &code))
            agree = sides_agree(s, o, c, &code, &a, &b, &phase);
    printf("  (alone it does not fail; after the %llu cases before it it %s)\n", (unsigned long long)back,
           agree ? "does not either" : "does");
    struct compare k = compare_for(c, forms, &a, o->instruction_pointers);
    if (o->brief)
        print_brief(stdout, &k, c, &code, &a, &b);
    else
        print_failure(stdout, &k, c, &code, "native", &a, s->translated ? "translated" : "again", &b);
}

static void report(struct run_shared *sh, const struct diff_options *o, uint64_t number)
{
    static const char *const modes[] = {"64", "32", "16"};
    char name[128];
    printf("%sdifftest --mode %s --seed %llu --case %llu%s%s%s%s", o->brief ? "" : "\n", modes[o->mode],
           (unsigned long long)o->seed, (unsigned long long)number, o->filter ? " --filter " : "",
           o->filter ? o->filter : "", o->native_only ? " --native-only" : "", o->brief ? ": " : "\n");
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        static struct diff_case c;
        struct sides s;
        alarm(60);
        if (sides_create(&s, sh, o) || !generator_case(&s.generator, number, &c))
            _exit(2);
        form_name(&sh->forms.form[c.form], name, sizeof name);
        if (!o->brief)
            printf("  form: %s\n", name);
        if (!shrink_and_print(&s, o, &sh->forms, &c))
            replay(&s, o, &sh->forms, number, &c);
        fflush(stdout);
        _exit(0);
    }
    int status = pid > 0 ? wait_child(pid) : 0;
    if (WIFSIGNALED(status))
        printf("  shrinking ended by signal %d\n", WTERMSIG(status));
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

struct watch {
    pid_t pid;
    uint64_t seen;
    double since;
};

// A worker that stands still is killed; one that died is replaced behind the case that killed it.
static bool tend_worker(struct run_shared *sh, const struct diff_options *o, unsigned w, struct watch *k)
{
    if (!k->pid)
        return false;
    struct worker_slot *slot = &sh->worker[w];
    int status;
    if (waitpid(k->pid, &status, WNOHANG) == 0) {
        if (slot->number != k->seen) {
            k->seen = slot->number;
            k->since = seconds();
        } else if (seconds() - k->since > STALL_SECONDS) {
            kill(k->pid, SIGKILL);
        }
        return true;
    }
    k->pid = 0;
    if (WIFEXITED(status))
        return false;
    printf("difftest: case %llu: the process ended by signal %d %s\n", (unsigned long long)slot->number,
           WTERMSIG(status), phase_name(slot->phase, o->native_only));
    note_failure(sh, slot->number);
    if (sh->failures < o->max_failures) {
        k->pid = start_worker(sh, o, w, slot->number + o->jobs);
        k->since = seconds();
    }
    return k->pid > 0;
}

int run_cases(struct run_shared *sh, const struct diff_options *o)
{
    struct watch watch[MAX_JOBS] = {0};
    double start = seconds();
    for (unsigned w = 0; w < o->jobs; w++) {
        watch[w].pid = start_worker(sh, o, w, o->first + w);
        watch[w].since = start;
        if (watch[w].pid < 0)
            return -errno;
    }
    for (bool alive = true; alive;) {
        alive = false;
        for (unsigned w = 0; w < o->jobs; w++)
            alive |= tend_worker(sh, o, w, &watch[w]);
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    uint64_t done = 0, skipped = 0;
    for (unsigned w = 0; w < o->jobs; w++) {
        done += sh->worker[w].done;
        skipped += sh->worker[w].skipped;
    }
    double elapsed = seconds() - start;
    for (uint32_t i = 0; i < sh->failures && i < MAX_REPORTED && i < o->max_failures; i++)
        report(sh, o, sh->failed_case[i]);
    printf("%llu cases in %.1f s (%.0f a second), %llu without a case, %u failures; seed %llu\n",
           (unsigned long long)done, elapsed, (double)done / elapsed, (unsigned long long)skipped,
           sh->failures, (unsigned long long)o->seed);
    return done || skipped ? 0 : -ENOTSUP;
}
