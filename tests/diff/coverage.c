// The coverage table: every offered form with the cases that agreed, ended in an exception or crossed a page.
#include "tests/diff/run.h"

static bool covered(const struct form *f)
{
    return f->cases && !f->failed;
}

double coverage_write(const struct form_table *t, const char *file)
{
    uint32_t total = t->offered_count, ran = 0, faulting = 0, faulted = 0, crossing = 0, crossed = 0,
             failed = 0;
    FILE *out = file ? fopen(file, "w") : NULL;
    if (file && !out)
        fprintf(stderr, "difftest: cannot write %s\n", file);
    if (out)
        fprintf(out, "# form | cases that ran through and agreed | agreed on an exception | operand across "
                     "pages | failed\n");
    for (uint32_t n = 0; n < total; n++) {
        const struct form *f = &t->form[t->offered[n]];
        ran += covered(f);
        failed += f->failed != 0;
        if (f->flags & FORM_MEMORY) {
            faulting++;
            faulted += f->faulted != 0;
            if (f->mem_bits > 8) {
                crossing++;
                crossed += f->crossed != 0;
            }
        }
        if (out) {
            char name[128];
            form_name(f, name, sizeof name);
            fprintf(out, "%-60s %8u %8u %8u %8u\n", name, f->cases, f->faulted, f->crossed, f->failed);
        }
    }
    double percent = total ? 100.0 * ran / total : 0;
    FILE *const both[2] = {out, stdout};
    for (unsigned i = 0; i < 2; i++)
        if (both[i])
            fprintf(both[i],
                    "forms: %u offered, %u covered (%.2f %%), %u failed; memory forms faulting %u of %u, "
                    "crossing a page %u of %u\n",
                    total, ran, percent, failed, faulted, faulting, crossed, crossing);
    if (out)
        fclose(out);
    return percent;
}
