// Which C functions translated code can reach, and how often it calls them while a kernel boots.
//   helpers KERNEL INITRD DOCUMENT
// Boots the kernel to its end, counting guest instructions, and prints each helper with its calls for every thousand of them.
// It fails when
//  - a stub (dbt/stubs.c) calls a function that the table "Helpers" of DOCUMENT does not list,
//  - a sensitive instruction has C semantics there is no reason given for in that document,
//  - a helper is called more often than the table allows,
//  - translated code breaks a rule of tests/fuzz/verify.c, which has it that blocks call nothing but stubs.
#include "cpu/engine.h"
#include "cpu/insn.h"
#include "devices/machine.h"
#include "tests/fuzz/core.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DOCUMENT_MAX (1u << 20)
#define LIMIT_S      150

struct helper {
    const char *name;
    const void *function;
    uint64_t calls;
};

static uint64_t calls_of(const struct dbt_counters *n, const char *name)
{
    // The chain of calls inside run.c counts too: a sensitive instruction that halts goes on in run_service().
    const struct { const char *name; uint64_t calls; } rows[] = {
        {"run_chain", n->chains}, {"run_sensitive", n->sensitive}, {"run_string", n->strings}, {"run_gather", n->gathers},
        {"run_indirect", n->ib_misses}, {"run_step", n->steps}, {"run_commit", n->bounces}, {"run_service", n->services},
        {"run_slow", n->slow_fills}, {"run_segment", n->segment_checks}, {"run_bounce", n->bounces}, {"run_fault", n->faults},
        {"run_limit", n->limits},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (!strcmp(rows[i].name, name))
            return rows[i].calls;
    return 0;
}

static const struct { const char *name; const void *function; } functions[] = {
    {"run_chain", (const void *)run_chain}, {"run_sensitive", (const void *)run_sensitive}, {"run_string", (const void *)run_string},
    {"run_gather", (const void *)run_gather}, {"run_indirect", (const void *)run_indirect}, {"run_step", (const void *)run_step},
    {"run_commit", (const void *)run_commit}, {"run_service", (const void *)run_service}, {"run_slow", (const void *)run_slow},
    {"run_segment", (const void *)run_segment}, {"run_bounce", (const void *)run_bounce}, {"run_fault", (const void *)run_fault},
    {"run_limit", (const void *)run_limit},
};

// Functions that the stubs call: MOV RAX, address; CALL RAX. Returns their number, or -1 with a line on standard error.
static int find_helpers(const struct dbt *d, struct helper *out, unsigned room)
{
    ZydisDecoder decoder;
    uint64_t loaded = 0;
    unsigned count = 0;

    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (uint64_t at = d->stubs_begin; at < d->stubs_end;) {
        ZydisDecodedInstruction z;
        ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
        if (ZYAN_FAILED(ZydisDecoderDecodeFull(&decoder, (const void *)at, d->stubs_end - at, &z, op))) {
            fprintf(stderr, "helpers: the stubs can't be decoded at +%#" PRIx64 "\n", at - d->stubs_begin);
            return -1;
        }
        at += z.length;
        if (z.mnemonic == ZYDIS_MNEMONIC_MOV && op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE &&
            (op[0].reg.value == ZYDIS_REGISTER_RAX || op[0].reg.value == ZYDIS_REGISTER_EAX))
            loaded = op[1].imm.value.u;
        if (z.meta.category != ZYDIS_CATEGORY_CALL)
            continue;
        if (op[0].type != ZYDIS_OPERAND_TYPE_REGISTER || op[0].reg.value != ZYDIS_REGISTER_RAX) {
            fprintf(stderr, "helpers: a stub calls in a way that is not known here, at +%#" PRIx64 "\n", at - d->stubs_begin);
            return -1;
        }
        unsigned i = 0;
        while (i < sizeof functions / sizeof functions[0] && (uint64_t)functions[i].function != loaded)
            i++;
        if (i == sizeof functions / sizeof functions[0] || count == room) {
            fprintf(stderr, "helpers: a stub calls a function that tests/guests/helpers.c does not know, at +%#" PRIx64 "\n",
                    at - d->stubs_begin);
            return -1;
        }
        unsigned k = 0;
        while (k < count && out[k].function != functions[i].function)
            k++;
        if (k == count)
            out[count++] = (struct helper){functions[i].name, functions[i].function, calls_of(&d->n, functions[i].name)};
    }
    return (int)count;
}

// Row "| `name` | ... | LIMIT | reason |" of the document: calls allowed for every thousand instructions. Negative: no such row.
static double limit_of(const char *document, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, "| `%s` |", name);
    const char *row = strstr(document, key), *cell = row ? strchr(row + strlen(key), '|') : NULL;
    const char *end = row ? strchr(row, '\n') : NULL;
    if (!cell || !end || cell > end)
        return -1;
    return strtod(cell + 1, NULL);
}

static bool names_instruction(const char *section, const char *end, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, "`%s`", name);
    const char *found = strstr(section, key);
    return found && found < end;
}

static void start_counting(void *opaque, struct machine *m)
{
    (void)opaque;
    cpu_count_begin(machine_vcpu(m), false);
}

static void put(void *opaque, const uint8_t *data, size_t n)
{
    (void)opaque;
    if (fwrite(data, 1, n, stderr) != n)
        exit(1);
}

static char *read_document(const char *path)
{
    FILE *f = fopen(path, "r");
    char *text = calloc(1, DOCUMENT_MAX + 1);
    if (!f || !text || !fread(text, 1, DOCUMENT_MAX, f)) {
        fprintf(stderr, "helpers: %s can't be read\n", path);
        exit(1);
    }
    fclose(f);
    return text;
}

static unsigned report(const struct dbt *d, const char *document)
{
    struct helper helpers[32];
    unsigned failures = 0;
    int count = find_helpers(d, helpers, sizeof helpers / sizeof helpers[0]);
    double thousands = (double)cpu_count(d->v) / 1000;

    if (count < 0)
        return 1;
    printf("%" PRIu64 " guest instructions executed, %" PRIu64 " translated in %" PRIu64 " blocks\n\n", cpu_count(d->v), d->n.guest_insns,
           d->n.blocks);
    printf("%-16s %12s %14s %8s\n", "helper", "calls", "per thousand", "limit");
    for (int i = 0; i < count; i++) {
        const struct helper *h = &helpers[i];
        double share = (double)h->calls / thousands, limit = limit_of(document, h->name);
        printf("%-16s %12" PRIu64 " %14.4f %8.4g%s\n", h->name, h->calls, share, limit,
               limit < 0 ? "  NOT DOCUMENTED" : share > limit ? "  TOO OFTEN" : "");
        failures += limit < 0 || share > limit;
    }
    const char *section = strstr(document, "\n## Helpers\n"), *end = section ? strstr(section + 5, "\n## ") : NULL;
    if (section && !end)
        end = section + strlen(section);
    printf("\n%-16s %12s %14s\n", "instruction", "calls", "per thousand");
    for (unsigned op = 1; op < OP_COUNT; op++) {
        bool listed = section && names_instruction(section, end, insn_names[op]);
        if (d->n.op_count[op] || !listed)
            printf("%-16s %12" PRIu64 " %14.4f%s\n", insn_names[op], d->n.op_count[op], (double)d->n.op_count[op] / thousands,
                   listed ? "" : "  NOT DOCUMENTED");
        failures += !listed;
    }
    return failures;
}

int main(int argc, char *argv[])
{
    if (argc != 4) {
        fprintf(stderr, "usage: helpers KERNEL INITRD DOCUMENT\n");
        return 2;
    }
    char error[MACHINE_ERROR_SIZE] = "";
    char *document = read_document(argv[3]);
    const char *initrds[] = {argv[2]};
    struct machine_config config = {
        .memory_bytes = 512u << 20,
        .kernel = argv[1],
        .initrds = initrds,
        .initrd_count = 1,
        .append = "console=ttyS0 panic=-1 quiet gnomon.end=poweroff",
        .serial = {{put, NULL}},
        .reset_exits = true,
    };
    struct machine *m = machine_create(&config, error, sizeof error, NULL);
    if (!m) {
        fprintf(stderr, "helpers: %s\n", error);
        return 1;
    }
    alarm(LIMIT_S);
    machine_call(m, start_counting, NULL);
    struct machine_outcome outcome = machine_run(m, error, sizeof error);
    if (outcome.end != MACHINE_END_POWERED_OFF) {
        fprintf(stderr, "helpers: the guest ended by %d: %s\n", (int)outcome.end, error);
        return 1;
    }
    const struct dbt *d = machine_vcpu(m)->engine;
    const struct block *b;
    for (uint32_t i = 0; (b = cache_block(d, i)); i++)
        if (!b->dead)
            core_verify_block(d, b);
    core_verify_cache(d);
    unsigned failures = report(d, document);
    machine_destroy(m);
    free(document);
    if (failures)
        fprintf(stderr, "helpers: %u without a reason in %s\n", failures, argv[3]);
    return failures != 0;
}
