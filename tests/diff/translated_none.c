// The translated side of a build without a translator.
#include "tests/diff/side.h"
#include <errno.h>

bool translated_available(void)
{
    return false;
}
struct translated *translated_create(const uint8_t *read_only)
{
    (void)read_only;
    return NULL;
}
void translated_destroy(struct translated *t)
{
    (void)t;
}
int translated_run(struct translated *t, const struct diff_code *code, const struct diff_state *in,
                   struct diff_state *out)
{
    (void)t, (void)code, (void)in, (void)out;
    return -ENOTSUP;
}
